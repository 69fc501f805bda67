"""evaluate: quality of the models of a pipeline on data that their training held out.

    evaluate:
      uses: evaluate
      tokens: ${tokens}                 # perplexity and bits per byte of base, sft and policy
      base: ${gpt}
      sft: ${sft}
      augmented: ${sft-augmented}       # A/B test: answers with and without synthetic questions
      policy: ${ppo}                    # reward and KL before (sft) and after PPO
      reward: ${reward}
      preferences: ${preferences}       # accuracy of the reward model
      conversations: ${questions}

All inputs are optional: every measurement whose inputs are given is made. Data that one stage holds
out may still occur in the corpus of another: the source `python:docs` excludes the objects that
`python_questions` and `python_preferences` hold out (3 % of their sentences remain, as part of
other texts); other corpora are the user's to separate.

Metrics (named `evaluate.<metric>` in gates):
  perplexity, bits_per_byte              of `base` on held-out documents; also sft_*, policy_*
  answer_loss, answer_loss_augmented     nats per token of held-out answers: sft, augmented
  augmentation_gain, *_stderr            their difference, positive if synthetic questions helped
  reward_accuracy, reward_margin         on held-out preferences
  reward_demonstration_score             mean score of their best responses (0 on training data)
  reward_before, reward_after, kl        on held-out prompts: sft, policy

evaluate.tasks: log-likelihood scores of a model on multiple-choice and cloze tasks
(`stages/evaluation/tasks.py` describes their files).

    tasks:
      uses: evaluate.tasks
      model: ${gpt}
      tasks: [tasks/capitals.yaml, tasks/lambada.jsonl]
      num_fewshot: 5

Metrics, prefixed with the task's name: `capitals_acc`, `*_acc_norm`, `*_acc_pmi` (with `pmi`),
`*_perplexity` (cloze), each with its standard error `*_stderr`; `*_chance`, `*_centered`,
`*_items`, `*_truncated` (items whose context was too long). Means over all
tasks: `acc`, `centered`.

The metrics equal those of lm-eval on the same items. `pip install 'headwater[eval]'` and

    lm_eval --model hf --tasks hellaswag,arc_easy --model_args \\
      pretrained=<folder of the model>,prefix_token_id=3,dtype=float32

runs public tasks on a model folder (`headwater show RUN:STAGE` prints its path). lm-eval's
`acc_norm` normalizes by characters instead of bytes; `prefix_token_id=3` starts an empty context
the way documents start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from pipeline import panels
from pipeline.context import Context
from pipeline.errors import InputError, Problem
from pipeline.plain_data import to_json
from pipeline.stage import EXECUTION, Inputs, Params, stage
from stages.chat.template_checks import (
    check_context,
    check_held_out,
    check_template,
    check_tokenizers,
)

if TYPE_CHECKING:
    from stages.evaluation.model_measurements import MeasurementSettings
    from stages.evaluation.tasks import Task


class EvaluateParams(Params):
    """Parameters of `evaluate`."""

    renamed: ClassVar[dict[str, str]] = {
        "windows": "max_windows",
        "conversations_limit": "max_conversations",
        "preferences_limit": "max_preferences",
        "prompts": "num_prompts",
    }

    seed: int = 0
    """Random seed of response sampling. Default: the seed of the pipeline."""
    max_windows: Annotated[int, Field(ge=0)] = 256
    """Number of held-out windows for the perplexity; 0 means all. Default: 256."""
    max_conversations: Annotated[int, Field(ge=0)] = 512
    """Number of held-out conversations for the answer loss; 0 means all. Default: 512."""
    max_preferences: Annotated[int, Field(ge=0)] = 0
    """Number of held-out rankings for the reward accuracy; 0 means all. Default: 0."""
    num_prompts: Annotated[int, Field(ge=1)] = 64
    """Number of held-out prompts on which policies are compared. Default: 64."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 48
    """Maximum response length, tokens; use the value of the PPO stage to get its reward and KL.
    Default: 48."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature of responses. Default: 1."""

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield models that cannot be measured together, and data that hold nothing out."""
        models = ("sft", "augmented", "policy", "reward")
        if "conversations" in upstream or "preferences" in upstream:
            for edge in models:
                yield from check_template(upstream, edge)
        yield from check_tokenizers(upstream, models)
        yield from check_held_out(upstream, "conversations", "the loss of answers")
        yield from check_held_out(upstream, "preferences", "the accuracy of a reward model")
        if {"sft", "policy", "reward", "conversations"} <= set(upstream):
            yield from check_context(
                upstream, models, "max_new_tokens", self.max_new_tokens, room="a prompt"
            )

    def settings(self) -> MeasurementSettings:
        """Return the fields that measurements need."""
        from stages.evaluation.model_measurements import MeasurementSettings

        return MeasurementSettings(
            seed=self.seed,
            max_windows=self.max_windows,
            max_conversations=self.max_conversations,
            max_preferences=self.max_preferences,
            num_prompts=self.num_prompts,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
        )


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
    version=4,
    metrics={
        "perplexity": "perplexity of `base` on held-out documents",
        "loss": "loss of `base` on held-out documents, nats per token",
        "bits_per_byte": "the same loss per byte of text, bits",
        **{
            f"{model}_{metric}": f"the same of `{model}`"
            for model in ("sft", "augmented", "policy")
            for metric in ("perplexity", "loss", "bits_per_byte")
        },
        "answer_loss": "loss of `sft` on held-out answers, nats per token",
        "answer_perplexity": "exponential of `answer_loss`",
        "answer_loss_augmented": "loss of `augmented` on held-out answers, nats per token",
        "answer_perplexity_augmented": "exponential of `answer_loss_augmented`",
        "augmentation_gain": "mean difference of the two losses",
        "augmentation_gain_stderr": "standard error of the difference",
        "reward_accuracy": "share of held-out pairs that the reward model orders rightly",
        "reward_margin": "mean difference of its scores of a pair",
        "reward_demonstration_score": "its mean score of the best held-out answers",
        "reward_before": "mean reward of the responses of `sft`",
        "reward_after": "mean reward of the responses of `policy`",
        "reward_gain": "mean difference of the two",
        "reward_gain_stderr": "standard error of the difference",
        "kl": "KL divergence of `policy` from `sft`, nats per response",
        "kl_k3": "the same by an estimate that is never negative",
        "length_before": "mean length of the responses of `sft`, tokens",
        "length_after": "mean length of the responses of `policy`, tokens",
        "finished_before": "share of the responses of `sft` with an end token",
        "finished_after": "share of the responses of `policy` with an end token",
    },
)
def evaluate(params: EvaluateParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Measure perplexity, reward accuracy, policy reward and KL, and the augmentation gain."""
    from stages.evaluation.model_measurements import applicable_measurements, run_measurements
    from stages.training.ranks.worker_group import WorkerGroup

    paths = {name: inputs.path(name) for name in inputs}
    names = [measurement.name for measurement in applicable_measurements(paths)]
    if not names:
        raise InputError(
            "no measurement is possible with these inputs",
            where=ctx.stage,
            remedy="connect `base` and `tokens`, or `reward` and `preferences`: see "
            "`headwater stages evaluate`",
        )
    with WorkerGroup(params.workers, ctx) as group:
        per_rank = group.run(run_measurements, names, paths, params.settings(), ctx.cancel_file)
    results = {name: result for part in per_rank for name, result in part.items()}
    metrics = {key: value for name in names for key, value in results[name].metrics.items()}
    for name in names:
        for panel in results[name].panels:
            ctx.panel(panel)
    rows = [[key, round(value, 4)] for key, value in metrics.items()]
    ctx.panel(panels.table("Evaluation", ["metric", "value"], rows))
    _publish_metrics(metrics, out, ctx)


def _publish_metrics(metrics: dict[str, float], out: Path, ctx: Context) -> None:
    from pipeline.atomic_io import write_atomic

    ctx.result(**metrics)
    write_atomic(out / "metrics.json", to_json(metrics, indent=1, sort_keys=True) + "\n")


class EvaluateTasksParams(Params):
    """Parameters of `evaluate.tasks`."""

    renamed: ClassVar[dict[str, str]] = {
        "shots": "num_fewshot",
        "document_start": "add_bos_token",
        "batch": "batch_size",
    }

    tasks: Annotated[tuple[str, ...], Field(min_length=1), EXECUTION]
    """Paths of task files. Their contents and names identify the artifact, not their paths."""
    num_fewshot: Annotated[int | None, Field(ge=0)] = None
    """Number of solved examples before each item. Default: the value in each task file."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Number of items per task, from its beginning; 0 means all. Default: 0."""
    pmi: bool = False
    """Scoring of choices without their context too, for `acc_pmi`, at twice the work. Default:
    false."""
    add_bos_token: bool = False
    """Insertion of the document-start token before every context. Default: false, only before empty
    contexts."""
    seed: int = 0
    """Random seed of few-shot examples. Default: the seed of the pipeline."""
    batch_size: Annotated[int, Field(ge=1), EXECUTION] = 16
    """Number of contexts per forward pass and rank. Default: 16."""

    def load_tasks(self) -> list[Task]:
        """Read the task files.

        Raises:
            InputError: a file is missing or invalid, has too few examples, or two tasks have the
                same name.
        """
        from stages.evaluation.tasks import load_tasks

        return load_tasks(
            self.tasks, num_fewshot=self.num_fewshot, limit=self.limit, seed=self.seed
        )

    def externals(self) -> dict[str, str]:
        """Return the content digest of each task, for the fingerprint.

        Raises:
            InputError: as `load_tasks`.
        """
        return {f"tasks.{task.name}": task.digest for task in self.load_tasks()}


@stage(
    "evaluate.tasks",
    inputs={"model": "Model"},
    output="Metrics",
    version=3,
    metrics={
        "acc": "mean accuracy over tasks",
        "centered": "mean over tasks of the accuracy above chance, 1 if all items are right",
        "*_acc": "accuracy of a task",
        "*_acc_norm": "its accuracy with scores per byte",
        "*_acc_pmi": "its accuracy with scores relative to those without context, with pmi",
        "*_perplexity": "perplexity of the answers of a cloze task",
        "*_stderr": "standard error of the metric of that name",
        "*_chance": "accuracy of random choices",
        "*_centered": "accuracy above chance",
        "*_items": "items of a task",
        "*_truncated": "items whose context was cut",
    },
)
def evaluate_tasks(params: EvaluateTasksParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Score a model on multiple-choice and cloze tasks, few-shot or zero-shot."""
    from pipeline.atomic_io import write_atomic
    from stages.evaluation.task_metrics import (
        aggregate_metrics,
        compute_task_metrics,
        merge_rank_results,
        result_panels,
        result_record,
    )
    from stages.evaluation.task_runner import run_tasks
    from stages.training.ranks.worker_group import WorkerGroup

    tasks = params.load_tasks()
    options = {
        "seed": params.seed,
        "pmi": params.pmi,
        "add_bos_token": params.add_bos_token,
        "batch_size": params.batch_size,
    }
    with WorkerGroup(params.workers, ctx) as group:
        per_rank = group.run(run_tasks, tasks, inputs.path("model"), options, ctx.cancel_file)
    scored = [
        compute_task_metrics(task, merge_rank_results([part[task.name] for part in per_rank]))
        for task in tasks
    ]
    (out / "items").mkdir(exist_ok=True)
    for one in scored:
        lines = [to_json(result_record(result)) + "\n" for result in one.results]
        write_atomic(out / "items" / f"{one.task.name}.jsonl", "".join(lines))
    for panel in result_panels(scored):
        ctx.panel(panel)
    _publish_metrics(aggregate_metrics(scored), out, ctx)
