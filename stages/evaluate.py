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
  reward_demonstrations                 mean score of their best responses, made 0 on trained ones
  reward_before, reward_after, kl       on held-out prompts: sft, policy
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
from pipeline.stage import Inputs, Params, stage

if TYPE_CHECKING:
    import torch

    from stages.training.rank import Rank


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
    from pipeline.disk import write_atomic
    from stages.training.group import WorkerGroup

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
    beat: Callable[[], None]
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
    from stages.generation.pause import Pause

    found = {}
    bench = Bench(paths, params, rank.device, Pause(rank, cancel_file))
    for done, task in enumerate(planned):
        if done % rank.world == rank.index:
            kind, _, model = task.partition(":")
            found[task] = TASKS[kind](bench, *([model] if model else []))
        bench.beat()
        if rank.ctx:
            rank.ctx.progress(done + 1, len(planned), "measure")
    return found


def documents(bench: Bench, model: str) -> Findings:
    """Perplexity and bits per byte of one model on held-out documents."""
    from stages.data.tokenizer import Tokenizer
    from stages.generation.perplexity import document_loss
    from stages.models.huggingface import load_language_model

    folder = bench.paths[model]
    loaded, tokenizer = load_language_model(folder).to(bench.device), Tokenizer(folder)
    found = document_loss(
        loaded, bench.paths["tokens"], tokenizer, windows=bench.params.windows,
        device=bench.device, beat=bench.beat,
    )  # fmt: skip
    prefix = "" if model == "base" else f"{model}_"
    return Findings({f"{prefix}{name}": value for name, value in found.items()})


def answers(bench: Bench) -> Findings:
    """Held-out answers under the model of the real questions, and of those with synthetic ones."""
    import math

    from stages.data.tokenizer import Tokenizer
    from stages.generation.perplexity import answer_likelihoods, mean_loss, paired_gain
    from stages.models.huggingface import load_language_model

    figures: dict[str, float] = {}
    likely = {}
    for name, suffix in (("sft", ""), ("augmented", "_augmented")):
        if folder := bench.paths.get(name):
            model, tokenizer = load_language_model(folder).to(bench.device), Tokenizer(folder)
            likely[name] = answer_likelihoods(
                model, bench.paths["conversations"], tokenizer,
                limit=bench.params.conversations_limit, device=bench.device, beat=bench.beat,
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
    from stages.alignment.reward_objective import judge, read_rankings
    from stages.data.tokenizer import Tokenizer
    from stages.models.huggingface import load_scorer

    folder = bench.paths["reward"]
    scorer, tokenizer = load_scorer(folder).to(bench.device), Tokenizer(folder)
    context = scorer.body.config.context
    rankings = read_rankings(bench.paths["preferences"], "eval", tokenizer, context)
    limit = bench.params.preferences_limit or len(rankings)
    judged = judge(scorer, rankings[:limit], bench.device, beat=bench.beat)
    rows = {f"{a} over {b}": right for (a, b), (right, _) in judged.by_ranks.items()}
    return Findings(
        {
            "reward_accuracy": judged.accuracy,
            "reward_margin": judged.margin,
            "reward_demonstrations": judged.demonstrations,
        },
        [panels.bars("Reward model: accuracy by ranks", rows)],
    )


def policy(bench: Bench) -> Findings:
    """Reward before and after PPO, and how far it went, on held-out prompts."""
    from stages.alignment.appraisal import compare_policies

    params = bench.params
    seen = compare_policies(
        *(bench.paths[name] for name in ("sft", "policy", "reward", "conversations")),
        max_new_tokens=params.max_new_tokens, temperature=params.temperature, seed=params.seed,
        count=params.prompts, device=bench.device, beat=bench.beat,
    )  # fmt: skip
    return Findings(seen.figures, [panels.samples("The policy before and after", seen.samples)])


TASKS: dict[str, Any] = {
    "documents": documents,
    "answers": answers,
    "preferences": preferences,
    "policy": policy,
}
