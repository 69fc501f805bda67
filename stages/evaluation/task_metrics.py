"""Scores of a model on tasks, as lm-eval and CORE define them.

acc        the choice of the largest log-probability is the right one
acc_norm   the same of log-probability by bytes of the choice (lm-eval: by characters)
acc_pmi    the same of log p(choice | context) - log p(choice | start of a document)
           (lm-eval's acc_mutual_info)
centered   (acc - chance) / (1 - chance): 0 for guessing, 1 for all right; its mean over tasks
           is made as CORE is (Li et al. 2024, DataComp-LM, section 3.5)

A cloze is right if each token of its target is the likeliest where it stands; `perplexity` is
exp(-mean log p(target)), a target counting as one word. Each has its standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline import panels
from pipeline.errors import InputError
from stages.evaluation.loglikelihood import (
    BATCH,
    BatchEncoder,
    LoglikelihoodRequest,
    LoglikelihoodResult,
    encode_requests,
    score_requests,
    truncate_left,
)
from stages.evaluation.tasks import Item, Task
from stages.generation.sampling import GenerativeModel

CHUNK = 8 * BATCH  # items: between two looks at whether to stop
SHOWN = 3  # items right, and wrong
TAIL = 700  # characters of a context that are shown


@dataclass(frozen=True)
class ItemResult:
    """What a model made of an item."""

    item: Item
    scores: tuple[LoglikelihoodResult, ...]
    """Of its choices."""
    free: tuple[float, ...] = ()
    """Log-probabilities of the choices without the context, if they were asked for."""
    cut: bool = False
    """Whether the context was too long, and its beginning is not read."""

    def pick(self, how: str = "acc") -> int:
        """The choice that is taken; the first of equals."""
        values = [made.log_prob for made in self.scores]
        if how == "acc_norm":
            sizes = [len(c.encode("utf-8", "surrogatepass")) for c in self.item.choices]
            values = [value / size for value, size in zip(values, sizes, strict=True)]
        elif how == "acc_pmi":
            values = [value - free for value, free in zip(values, self.free, strict=True)]
        return max(range(len(values)), key=values.__getitem__)

    def right(self, how: str = "acc") -> bool:
        """Whether that is the answer; for a cloze, whether the model would say it by itself."""
        if len(self.scores) == 1:
            return self.scores[0].greedy
        return self.pick(how) == self.item.answer


@dataclass(frozen=True)
class TaskRunner:
    """A model with what is needed to put questions to it."""

    model: GenerativeModel
    tokenizer: BatchEncoder
    context: int
    """Tokens that it reads at once."""
    start: int
    """The token that a document begins after."""
    pad_id: int
    seed: int = 0
    pmi: bool = False
    document: bool = False
    """Whether every context begins with `start`."""
    batch: int = BATCH
    device: torch.device | str = "cpu"
    heartbeat: Callable[[], None] = lambda: None

    def answers(self, task: Task, items: Sequence[Item], shots: int) -> Iterator[ItemResult]:
        """What the model makes of each item of a task.

        Raises:
            InputError: a choice is longer than the context.
        """
        for start in range(0, len(items), CHUNK):
            yield from self._chunk(task, items[start : start + CHUNK], shots)

    def _chunk(self, task: Task, items: Sequence[Item], shots: int) -> Iterator[ItemResult]:
        prompts = [task.prompt(item, task.shots_of(item, shots, self.seed)) for item in items]
        pairs = [
            (prompt, item.joint + choice)
            for prompt, item in zip(prompts, items, strict=True)
            for choice in item.choices
        ]
        asked = encode_requests(self.tokenizer, pairs, start=self.start, document=self.document)
        owners = [item for item in items for _ in item.choices]
        read = [self._fitted(task, own, one) for own, one in zip(owners, asked, strict=True)]
        free = (
            [LoglikelihoodRequest((self.start,), one.continuation) for one in asked]
            if self.pmi
            else []
        )
        scores = score_requests(
            self.model, [*read, *free], pad_id=self.pad_id, batch=self.batch,
            device=self.device, heartbeat=self.heartbeat,
        )  # fmt: skip
        cut = [len(a.context) < len(b.context) for a, b in zip(read, asked, strict=True)]
        at = 0
        for item in items:
            mine = slice(at, at := at + len(item.choices))
            without = [made.log_prob for made in scores[len(asked) :][mine]]
            yield ItemResult(item, tuple(scores[mine]), tuple(without), any(cut[mine]))

    def _fitted(
        self, task: Task, item: Item, request: LoglikelihoodRequest
    ) -> LoglikelihoodRequest:
        try:
            return truncate_left(request, self.context)
        except InputError as error:
            error.where = f"{task.path}:{item.line}"
            raise


@dataclass(frozen=True)
class TaskMetrics:
    """A task's figures, by their own names."""

    task: Task
    answers: tuple[ItemResult, ...]
    shots: int
    figures: dict[str, float]


def compute_task_metrics(task: Task, answers: Sequence[ItemResult], shots: int) -> TaskMetrics:
    """A model's figures on a task, of at least one answer."""
    figures: dict[str, float] = {}
    ways = ["acc"]
    if task.kind == "choice":
        ways += ["acc_norm", *(["acc_pmi"] if answers[0].free else [])]
    for how in ways:
        figures |= mean_with_stderr(how, [float(answer.right(how)) for answer in answers])
    chance = 0.0
    if task.kind == "choice":
        chance = sum(1 / len(answer.scores) for answer in answers) / len(answers)
    else:
        figures |= _perplexity([answer.scores[0].log_prob for answer in answers])
    figures |= {"chance": chance, "centered": (figures["acc"] - chance) / (1 - chance)}
    figures |= {"items": len(answers), "cut": sum(answer.cut for answer in answers)}
    return TaskMetrics(task, tuple(answers), shots, figures)


def mean_with_stderr(name: str, values: Sequence[float]) -> dict[str, float]:
    """A mean and its standard error, which one value does not have."""
    middle = sum(values) / len(values)
    if len(values) < 2:
        return {name: middle}
    variance = sum((value - middle) ** 2 for value in values) / (len(values) - 1)
    return {name: middle, f"{name}_error": math.sqrt(variance / len(values))}


def _perplexity(log_probs: Sequence[float]) -> dict[str, float]:
    """The error is that of the mean, carried through the exponential."""
    found = mean_with_stderr("perplexity", log_probs)
    found["perplexity"] = math.exp(min(-found["perplexity"], 700.0))
    if "perplexity_error" in found:
        found["perplexity_error"] *= found["perplexity"]
    return found


def aggregate_metrics(grades: Sequence[TaskMetrics]) -> dict[str, float]:
    """All figures under the names of their tasks, and the means over tasks."""
    figures = {f"{g.task.name}_{name}": float(v) for g in grades for name, v in g.figures.items()}
    for name in ("acc", "centered"):
        figures[name] = sum(g.figures[name] for g in grades) / len(grades)
    return figures


COLUMNS = ("acc", "acc_norm", "acc_pmi", "perplexity")


def result_panels(grades: Sequence[TaskMetrics]) -> Iterator[panels.Panel]:
    """The scores of all tasks, and items of each that were right and wrong."""
    shown = [name for name in COLUMNS if any(name in g.figures for g in grades)]
    measured = [column for name in shown for column in (name, "±")]
    columns = ["task", "shots", "items", *measured, "chance", "centered", "cut"]
    yield panels.table("Tasks", columns, [_row(g, shown) for g in grades])
    for one in grades:
        yield panels.samples(f"{one.task.name}: items right and wrong", list(_samples(one)))


def _row(one: TaskMetrics, shown: Sequence[str]) -> list[str | float]:
    def cell(name: str) -> str | float:
        return round(one.figures[name], 4) if name in one.figures else "–"

    measured = [cell(key) for name in shown for key in (name, f"{name}_error")]
    ends = [cell(name) for name in ("chance", "centered", "cut")]
    return [one.task.name, one.shots, len(one.answers), *measured, *ends]


def _samples(one: TaskMetrics) -> Iterator[dict[str, str]]:
    for verdict in (True, False):
        found = [answer for answer in one.answers if answer.right() is verdict]
        for answer in found[:SHOWN]:
            item = answer.item
            said = {"": "right" if verdict else "wrong", "context": item.context[-TAIL:]}
            said["answer"] = item.choices[item.answer]
            if len(item.choices) > 1:
                said["chosen"] = item.choices[answer.pick()]
            said["log p"] = "   ".join(f"{made.log_prob:.2f}" for made in answer.scores)
            yield said


def result_record(answer: ItemResult) -> dict[str, Any]:
    """An answer as a line of a file."""
    scores = [round(made.log_prob, 4) for made in answer.scores]
    row: dict[str, Any] = {"line": answer.item.line, "log_probs": scores}
    if answer.free:
        row["log_probs_free"] = [round(value, 4) for value in answer.free]
    return {**row, "picked": answer.pick(), "right": answer.right(), "cut": answer.cut}


def merge_rank_results(parts: Sequence[Sequence[ItemResult]]) -> list[ItemResult]:
    """Every rank's answers, in the order of the items."""
    return sorted((one for part in parts for one in part), key=lambda one: one.item.line)
