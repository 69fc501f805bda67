"""evaluate: what the models of a pipeline are worth, on what their training held out.

    evaluate:
      uses: evaluate
      tokens: ${tokens}                 # perplexity and bits per byte of base, sft and policy
      base: ${gpt}
      sft: ${sft}
      augmented: ${sft-augmented}       # the A/B: answers with and without synthetic questions
      policy: ${ppo}                    # reward and KL before (sft) and after
      reward: ${reward}
      preferences: ${preferences}       # accuracy of the reward model
      conversations: ${questions}

Every input may be left out; what can be measured with those that are there is measured. What is
held out of one stage may still stand in another's corpus: `python:docs` leaves out the objects that
`questions` and `preferences` hold out (3 % of their sentences remain, said by other text); other
corpora are for their owners to keep apart. Figures
(gates name them as `evaluate.<figure>`):
  perplexity, bits_per_byte             of `base` on held-out documents; sft_…, policy_… too
  answer_loss, answer_loss_augmented    nats a token of held-out answers: sft, augmented
  augmentation_gain (…_error)           the difference, positive if the synthetic questions helped
  reward_accuracy, reward_margin        on held-out preferences
  reward_demonstration_score            mean score of their best responses, made 0 on trained ones
  reward_before, reward_after, kl       on held-out prompts: sft, policy

evaluate.tasks: a model on tasks of multiple choice and of cloze (`stages/evaluation/tasks.py` says
how their files are written), by log-likelihood.

    tasks:
      uses: evaluate.tasks
      model: ${gpt}
      tasks: [tasks/capitals.yaml, tasks/lambada.jsonl]
      shots: 5

Figures, with the task's name in front: `capitals_acc`, `…_acc_norm`, `…_acc_pmi` (with `pmi`),
`…_perplexity` (cloze), each with its standard error `…_error`; `…_chance`, `…_centered`, `…_items`,
`…_cut` (items whose context was too long). Over all tasks: `acc`, `centered`.

What it makes is what lm-eval makes of the same items: `pip install 'headwater[eval]'`, then

    lm_eval --model hf --tasks hellaswag,arc_easy --model_args \\
      pretrained=<folder of the model>,prefix_token_id=3,dtype=float32

runs any of the public tasks on a model's folder (`headwater show RUN:STAGE` says which it is).
There `acc_norm` counts characters and not bytes, and `prefix_token_id=3` has an empty context
begin as documents do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from pipeline import panels
from pipeline.context import Context
from pipeline.errors import InputError
from pipeline.stage import EXECUTION, Inputs, Params, stage

if TYPE_CHECKING:
    import torch

    from stages.evaluation.task_metrics import ItemResult
    from stages.evaluation.tasks import Task
    from stages.training.ranks.rank import Rank


class EvaluateParams(Params):
    """What a pipeline file may say of the stage."""

    seed: int = 0
    """Of the responses that are drawn; the pipeline's, if left out."""
    windows: Annotated[int, Field(ge=0)] = 256
    """Held-out windows for the perplexity; 0 takes all."""
    conversations_limit: Annotated[int, Field(ge=0)] = 512
    """Held-out answers; 0 takes all."""
    preferences_limit: Annotated[int, Field(ge=0)] = 0
    """Held-out rankings; 0 takes all."""
    prompts: Annotated[int, Field(ge=1)] = 64
    """Held-out prompts that the policies answer."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 48
    """Longest response; what the policy was trained with, or its reward and KL are of others."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the responses."""


@dataclass
class Findings:
    """What a task found."""

    figures: dict[str, float] = field(default_factory=dict)
    panels: list[panels.Panel] = field(default_factory=list)


@stage(
    "evaluate",
    inputs={
        "tokens": "Tokens?",
        "base": "Model?",
        "sft": "Model?",
        "augmented": "Model?",
        "policy": "Model?",
        "reward": "RewardModel?",
        "conversations": "Conversations?",
        "preferences": "Preferences?",
    },
    output="Metrics",
    version=3,
)
def evaluate(params: EvaluateParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Measure perplexity, reward accuracy, reward and KL, and the gain by augmentation."""
    from pipeline.atomic_io import write_atomic
    from stages.training.ranks.worker_group import WorkerGroup

    paths = {name: inputs.path(name) for name in inputs}
    planned = list(tasks(paths))
    if not planned:
        raise InputError(
            "nothing can be measured with the inputs that are given",
            where=ctx.stage,
            remedy="give `base` with `tokens`, or `reward` with `preferences`: see "
            "`headwater stages evaluate`",
        )
    with WorkerGroup(params.workers, ctx) as group:
        parts = group.run(carry_out, planned, paths, params, ctx.cancel_file)
    found = {task: findings for part in parts for task, findings in part.items()}
    figures = {k: v for task in planned for k, v in found[task].figures.items()}
    for task in planned:
        for panel in found[task].panels:
            ctx.panel(panel)
    rows = [[name, round(value, 4)] for name, value in figures.items()]
    ctx.panel(panels.table("Evaluation", ["figure", "value"], rows))
    ctx.result(**figures)
    write_atomic(out / "metrics.json", json.dumps(figures, indent=1, sort_keys=True) + "\n")


def tasks(paths: Mapping[str, Path]) -> Iterator[str]:
    """What can be measured with these inputs."""
    if "tokens" in paths:
        yield from (f"documents:{name}" for name in ("base", "sft", "policy") if name in paths)
    if "conversations" in paths and {"sft", "augmented"} & set(paths):
        yield "answers"
    if {"reward", "preferences"} <= set(paths):
        yield "preferences"
    if {"sft", "policy", "reward", "conversations"} <= set(paths):
        yield "policy"


@dataclass(frozen=True)
class Bench:
    """What a task works with."""

    paths: Mapping[str, Path]
    params: EvaluateParams
    device: torch.device
    heartbeat: Callable[[], None]
    """Called between batches."""


def carry_out(
    rank: Rank,
    planned: list[str],
    paths: Mapping[str, Path],
    params: EvaluateParams,
    cancel_file: Path | None = None,
) -> dict[str, Findings]:
    """This rank's share of the tasks.

    Raises:
        Interrupted: somebody asked the run to stop.
    """
    from stages.distributed.cancellation_point import CancellationPoint

    found = {}
    bench = Bench(paths, params, rank.device, CancellationPoint(rank, cancel_file))
    for done, task in enumerate(planned):
        if done % rank.world == rank.index:
            kind, _, model = task.partition(":")
            found[task] = TASKS[kind](bench, *([model] if model else []))
        bench.heartbeat()
        if rank.ctx:
            rank.ctx.progress(done + 1, len(planned), "measure")
    return found


def documents(bench: Bench, model: str) -> Findings:
    """Perplexity and bits per byte of one model on held-out documents."""
    from stages.data.tokenizers.huggingface_tokenizer import open_tokenizer
    from stages.evaluation.perplexity import document_loss
    from stages.models.hf_export import load_language_model

    folder = bench.paths[model]
    loaded, tokenizer = load_language_model(folder).to(bench.device), open_tokenizer(folder)
    found = document_loss(
        loaded, bench.paths["tokens"], tokenizer, windows=bench.params.windows,
        device=bench.device, heartbeat=bench.heartbeat,
    )  # fmt: skip
    prefix = "" if model == "base" else f"{model}_"
    return Findings({f"{prefix}{name}": value for name, value in found.items()})


def answers(bench: Bench) -> Findings:
    """Held-out answers under the model of the real questions, and of those with synthetic ones."""
    import math

    from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
    from stages.evaluation.perplexity import answer_likelihoods, mean_loss, paired_gain
    from stages.models.hf_export import load_language_model

    figures: dict[str, float] = {}
    likely = {}
    if {"sft", "augmented"} <= set(bench.paths):
        Tokenizer(bench.paths["sft"]).require_equal(Tokenizer(bench.paths["augmented"]))
    for name, suffix in (("sft", ""), ("augmented", "_augmented")):
        if folder := bench.paths.get(name):
            model, tokenizer = load_language_model(folder).to(bench.device), Tokenizer(folder)
            likely[name] = answer_likelihoods(
                model, bench.paths["conversations"], tokenizer,
                limit=bench.params.conversations_limit, device=bench.device, heartbeat=bench.heartbeat,
            )  # fmt: skip
            loss = mean_loss(likely[name])
            figures[f"answer_loss{suffix}"] = loss
            figures[f"answer_perplexity{suffix}"] = math.exp(min(loss, 700.0))
    if len(likely) < 2:
        return Findings(figures)
    gain, error = paired_gain(likely["sft"], likely["augmented"])
    figures |= {"augmentation_gain": gain, "augmentation_gain_error": error}
    losses = {"real": figures["answer_loss"], "real + synthetic": figures["answer_loss_augmented"]}
    title = f"Held-out answers, equal steps: {gain:+.4f} ± {error:.4f}"
    return Findings(figures, [panels.bars(title, losses, unit="nats a token")])


def preferences(bench: Bench) -> Findings:
    """Accuracy and margin of the reward model on held-out rankings."""
    from stages.alignment.rankings import read_rankings
    from stages.alignment.reward_evaluation import evaluate_rankings
    from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
    from stages.models.hf_export import load_reward_model

    folder = bench.paths["reward"]
    scorer, tokenizer = load_reward_model(folder).to(bench.device), Tokenizer(folder)
    context = scorer.body.config.context_length
    rankings = read_rankings(bench.paths["preferences"], "eval", tokenizer, context)
    limit = bench.params.preferences_limit or len(rankings)
    found = evaluate_rankings(scorer, rankings[:limit], bench.device, heartbeat=bench.heartbeat)
    rows = {f"{a} over {b}": right for (a, b), (right, _) in found.by_pair.items()}
    return Findings(
        {
            "reward_accuracy": found.accuracy,
            "reward_margin": found.margin,
            "reward_demonstration_score": found.demonstration_score,
        },
        [panels.bars("Reward model: accuracy by ranks", rows)],
    )


def policy(bench: Bench) -> Findings:
    """Reward before and after PPO, and how far it went, on held-out prompts."""
    from stages.alignment.policy_comparison import compare_policies

    params = bench.params
    seen = compare_policies(
        *(bench.paths[name] for name in ("sft", "policy", "reward", "conversations")),
        max_new_tokens=params.max_new_tokens, temperature=params.temperature, seed=params.seed,
        count=params.prompts, device=bench.device, heartbeat=bench.heartbeat,
    )  # fmt: skip
    return Findings(seen.metrics, [panels.samples("The policy before and after", seen.samples)])


TASKS: dict[str, Any] = {
    "documents": documents,
    "answers": answers,
    "preferences": preferences,
    "policy": policy,
}


class TasksParams(Params):
    """What a pipeline file may say of the stage."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1), EXECUTION]
    """Files of tasks. Content and names decide the artifact, not where they lie."""
    shots: Annotated[int | None, Field(ge=0)] = None
    """Solved items before each; as each task says, if left out."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Only the first so many items of each task; 0 takes all."""
    pmi: bool = False
    """Also score choices against themselves without their context, for as much work again."""
    document_start: bool = False
    """Begin every context with the token that documents begin after; else only an empty one."""
    seed: int = 0
    """Of the shots; the pipeline's, if left out."""
    batch: Annotated[int, Field(ge=1), EXECUTION] = 16
    """Contexts that a rank reads at once."""

    def load(self) -> list[Task]:
        """The tasks.

        Raises:
            InputError: a file is missing or broken, has too few items for its shots, or two tasks
                have one name.
        """
        from stages.evaluation.tasks import load_task

        found = [load_task(path) for path in self.tasks]
        names = [task.name for task in found]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise InputError(
                f"two tasks have the name {twice!r}",
                where=found[names.index(twice)].path,
                remedy="give one of them another `name`",
            )
        for task in found:
            for item in self.chosen(task):
                task.shots_of(item, self.shots_of(task), self.seed)
        return found

    def shots_of(self, task: Task) -> int:
        """Solved items before each of a task's."""
        return task.section.shots if self.shots is None else self.shots

    def chosen(self, task: Task) -> list[Any]:
        """The items that are scored."""
        return task.scored[: self.limit or None]

    def externals(self) -> dict[str, str]:
        """The content of each task.

        Raises:
            InputError: as `load`.
        """
        return {f"tasks.{task.name}": task.digest for task in self.load()}


@stage("evaluate.tasks", inputs={"model": "Model"}, output="Metrics", version=2)
def evaluate_tasks(params: TasksParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Score a model on tasks of multiple choice and of cloze, few-shot or zero-shot."""
    from pipeline.atomic_io import write_atomic
    from stages.evaluation.task_metrics import (
        aggregate_metrics,
        compute_task_metrics,
        merge_rank_results,
        result_panels,
        result_record,
    )
    from stages.training.ranks.worker_group import WorkerGroup

    files = params.load()
    with WorkerGroup(params.workers, ctx) as group:
        parts = group.run(answer_tasks, files, inputs.path("model"), params, ctx.cancel_file)
    grades = [
        compute_task_metrics(
            task, merge_rank_results([part[task.name] for part in parts]), params.shots_of(task)
        )
        for task in files
    ]
    (out / "items").mkdir(exist_ok=True)
    for one in grades:
        lines = [json.dumps(result_record(answer)) + "\n" for answer in one.answers]
        write_atomic(out / "items" / f"{one.task.name}.jsonl", "".join(lines))
    for panel in result_panels(grades):
        ctx.panel(panel)
    figures = aggregate_metrics(grades)
    ctx.result(**figures)
    write_atomic(out / "metrics.json", json.dumps(figures, indent=1, sort_keys=True) + "\n")


def answer_tasks(
    rank: Rank,
    files: list[Task],
    folder: Path,
    params: TasksParams,
    cancel_file: Path | None = None,
) -> dict[str, list[ItemResult]]:
    """This rank's share of the items of every task: each world-th.

    Raises:
        InputError: a choice is longer than the model's context.
        Interrupted: somebody asked the run to stop.
    """
    from stages.data.tokenizers.huggingface_tokenizer import open_tokenizer
    from stages.distributed.cancellation_point import CancellationPoint
    from stages.evaluation.task_metrics import TaskRunner
    from stages.models.hf_export import load_language_model

    model, tokenizer = load_language_model(folder).to(rank.device), open_tokenizer(folder)
    examiner = TaskRunner(
        model, tokenizer, model.config.context_length, tokenizer.document_start_id, tokenizer.padding_id,
        params.seed, params.pmi, params.document_start, params.batch, rank.device,
        CancellationPoint(rank, cancel_file),
    )  # fmt: skip
    total, done = sum(len(params.chosen(task)) for task in files), 0
    found: dict[str, list[ItemResult]] = {}
    for task in files:
        mine, shots = params.chosen(task)[rank.index :: rank.world], params.shots_of(task)
        found[task.name] = []
        for answer in examiner.answers(task, mine, shots):
            found[task.name].append(answer)
            done += 1
            if rank.ctx:
                rank.ctx.progress(min(total, done * rank.world), total, "item")
    return found
