"""Metrics of tasks, as lm-eval and CORE define them.

acc        the choice with the largest log-probability is correct
acc_norm   the same with log-probabilities divided by the bytes of the choice (lm-eval: characters)
acc_pmi    the same with log p(choice | context) - log p(choice | start of a document)
           (lm-eval: acc_mutual_info)
centered   (acc - chance) / (1 - chance): 0 for guessing, 1 for all correct; the mean over tasks is
           the CORE metric (Li et al. 2024, DataComp-LM, section 3.5)

A cloze item is correct if every token of its target is the most likely one; its `perplexity` is
exp(-mean log p(target)), with one target as one word. Every mean has a standard error, `_stderr`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import panels
from stages.evaluation.loglikelihood import LoglikelihoodResult
from stages.evaluation.tasks import Item, Task

SHOWN_ITEMS = 3  # correct ones, and wrong ones
SHOWN_CHARACTERS = 700  # of a context
SHOWN_METRICS = ("acc", "acc_norm", "acc_pmi", "perplexity")


@dataclass(frozen=True)
class ItemResult:
    """Log-likelihoods of the choices of an item."""

    item: Item
    scores: tuple[LoglikelihoodResult, ...]
    """One per choice."""
    unconditional: tuple[float, ...] = ()
    """Log-probabilities of the choices without the context, nats; empty if not requested."""
    truncated: bool = False
    """True if the beginning of the context was cut off to fit the model."""

    def predict(self, metric: str = "acc") -> int:
        """Return the index of the predicted choice; the first one of equal scores."""
        values = [score.log_prob for score in self.scores]
        if metric == "acc_norm":
            sizes = [len(c.encode("utf-8", "surrogatepass")) for c in self.item.choices]
            values = [value / size for value, size in zip(values, sizes, strict=True)]
        elif metric == "acc_pmi":
            values = [value - base for value, base in zip(values, self.unconditional, strict=True)]
        return max(range(len(values)), key=values.__getitem__)

    def is_correct(self, metric: str = "acc") -> bool:
        """Return whether the prediction is the answer; for a cloze, whether the target is the
        greedy continuation."""
        if len(self.scores) == 1:
            return self.scores[0].is_greedy
        return self.predict(metric) == self.item.answer


@dataclass(frozen=True)
class TaskMetrics:
    """Results and metrics of one task."""

    task: Task
    results: tuple[ItemResult, ...]
    metrics: dict[str, float]
    """Without the task's name in front."""


def compute_task_metrics(task: Task, results: Sequence[ItemResult]) -> TaskMetrics:
    """Return the metrics of at least one result."""
    metrics: dict[str, float] = {}
    accuracies = ["acc"]
    if task.task_type == "multiple_choice":
        accuracies += ["acc_norm", *(["acc_pmi"] if results[0].unconditional else [])]
    for name in accuracies:
        correct = [float(result.is_correct(name)) for result in results]
        metrics |= mean_with_stderr(name, correct)
    chance = 0.0
    if task.task_type == "multiple_choice":
        chance = sum(1 / len(result.scores) for result in results) / len(results)
    else:
        metrics |= _perplexity([result.scores[0].log_prob for result in results])
    metrics |= {"chance": chance, "centered": (metrics["acc"] - chance) / (1 - chance)}
    truncated = sum(result.truncated for result in results)
    metrics |= {"items": len(results), "truncated": truncated}
    return TaskMetrics(task, tuple(results), metrics)


def mean_with_stderr(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return the mean and, for two values or more, its standard error."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return {name: mean}
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return {name: mean, f"{name}_stderr": math.sqrt(variance / len(values))}


def _perplexity(log_probs: Sequence[float]) -> dict[str, float]:
    """Return the perplexity and its standard error, by the delta method."""
    found = mean_with_stderr("perplexity", log_probs)
    found["perplexity"] = math.exp(min(-found["perplexity"], 700.0))
    if "perplexity_stderr" in found:
        found["perplexity_stderr"] *= found["perplexity"]
    return found


def aggregate_metrics(scored: Sequence[TaskMetrics]) -> dict[str, float]:
    """Return all metrics with their task's name in front, and the means over tasks."""
    named = {f"{one.task.name}_{k}": float(v) for one in scored for k, v in one.metrics.items()}
    for name in ("acc", "centered"):
        named[name] = sum(one.metrics[name] for one in scored) / len(scored)
    return named


def result_panels(scored: Sequence[TaskMetrics]) -> Iterator[panels.Panel]:
    """Yield a table of all tasks, and per task some correct and wrong items."""
    shown = [name for name in SHOWN_METRICS if any(name in one.metrics for one in scored)]
    measured = [column for name in shown for column in (name, "±")]
    columns = ["task", "few-shot", "items", *measured, "chance", "centered", "truncated"]
    yield panels.table("Tasks", columns, [_row(one, shown) for one in scored])
    for one in scored:
        yield panels.samples(f"{one.task.name}: correct and wrong items", list(_samples(one)))


def _row(one: TaskMetrics, shown: Sequence[str]) -> list[str | float | None]:
    def cell(name: str) -> float | None:
        return round(one.metrics[name], 4) if name in one.metrics else None

    measured = [cell(key) for name in shown for key in (name, f"{name}_stderr")]
    ends = [cell(name) for name in ("chance", "centered", "truncated")]
    return [one.task.name, one.task.num_fewshot, len(one.results), *measured, *ends]


def _samples(one: TaskMetrics) -> Iterator[dict[str, str]]:
    for correct in (True, False):
        found = [result for result in one.results if result.is_correct() is correct]
        for result in found[:SHOWN_ITEMS]:
            item = result.item
            card = {
                "": "correct" if correct else "wrong",
                "context": item.context[-SHOWN_CHARACTERS:],
            }
            card["answer"] = item.choices[item.answer]
            if len(item.choices) > 1:
                card["prediction"] = item.choices[result.predict()]
            card["log p"] = "   ".join(f"{score.log_prob:.2f}" for score in result.scores)
            yield card


def result_record(result: ItemResult) -> dict[str, Any]:
    """Return the result of an item as a JSON object."""
    log_probs = [round(score.log_prob, 4) for score in result.scores]
    record: dict[str, Any] = {"line": result.item.line, "log_probs": log_probs}
    if result.unconditional:
        record["log_probs_unconditional"] = [round(value, 4) for value in result.unconditional]
    return {
        **record,
        "prediction": result.predict(),
        "correct": result.is_correct(),
        "truncated": result.truncated,
    }


def merge_rank_results(parts: Sequence[Sequence[ItemResult]]) -> list[ItemResult]:
    """Merge the results of all ranks, in the order of the items."""
    return sorted((one for part in parts for one in part), key=lambda one: one.item.line)
