"""Measurements of the models of a pipeline on held-out data, for the stage `evaluate`.

A `Measurement` names the inputs that it needs. Those whose inputs are connected are distributed
over the ranks in turn; each runs on one rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import panels

if TYPE_CHECKING:
    import torch

    from stages.training.ranks.rank import Rank


@dataclass(frozen=True)
class MeasurementSettings:
    """Sizes and sampling options of measurements; a size of 0 means everything."""

    seed: int
    max_windows: int
    max_conversations: int
    max_preferences: int
    num_prompts: int
    max_new_tokens: int
    temperature: float


@dataclass(frozen=True)
class MeasurementContext:
    """Inputs, settings and device of a measurement."""

    paths: Mapping[str, Path]
    settings: MeasurementSettings
    device: torch.device
    heartbeat: Callable[[], None]
    """Called between batches."""


@dataclass
class MeasurementResult:
    """Metrics and report panels of a measurement."""

    metrics: dict[str, float] = field(default_factory=dict)
    panels: list[panels.Panel] = field(default_factory=list)


@dataclass(frozen=True)
class Measurement:
    """A function with the inputs that it needs."""

    name: str
    inputs: tuple[str, ...]
    """Names of inputs that are all required."""
    run: Callable[[MeasurementContext], MeasurementResult]
    any_of: tuple[str, ...] = ()
    """Names of inputs, at least one of them required."""

    def is_applicable(self, names: Collection[str]) -> bool:
        """Return whether the inputs of these names suffice."""
        any_given = not self.any_of or bool({*self.any_of} & {*names})
        return {*self.inputs} <= {*names} and any_given


def document_metrics(context: MeasurementContext, model: str) -> MeasurementResult:
    """Measure perplexity and bits per byte of the model at input `model` on held-out documents."""
    from stages.data.tokenizers.huggingface_tokenizer import open_tokenizer
    from stages.evaluation.perplexity import document_loss
    from stages.models.model_io import load_language_model

    folder = context.paths[model]
    loaded, tokenizer = load_language_model(folder).to(context.device), open_tokenizer(folder)
    metrics = document_loss(
        loaded, context.paths["tokens"], tokenizer, max_windows=context.settings.max_windows,
        device=context.device, heartbeat=context.heartbeat,
    )  # fmt: skip
    prefix = "" if model == "base" else f"{model}_"
    return MeasurementResult({f"{prefix}{name}": value for name, value in metrics.items()})


def answer_metrics(context: MeasurementContext) -> MeasurementResult:
    """Measure the loss of held-out answers, and the gain by synthetic questions if both the model
    without (`sft`) and the one with them (`augmented`) are given."""
    from stages.chat.chat_format import ChatFormat
    from stages.evaluation.perplexity import answer_likelihoods, mean_loss, paired_gain
    from stages.models.model_io import load_language_model

    metrics: dict[str, float] = {}
    likelihoods = {}
    if {"sft", "augmented"} <= set(context.paths):
        first, second = (ChatFormat.open(context.paths[name]) for name in ("sft", "augmented"))
        first.require_equal(second)
    for name, suffix in (("sft", ""), ("augmented", "_augmented")):
        if folder := context.paths.get(name):
            model, chat = load_language_model(folder).to(context.device), ChatFormat.open(folder)
            likelihoods[name] = answer_likelihoods(
                model, context.paths["conversations"], chat,
                limit=context.settings.max_conversations, device=context.device,
                heartbeat=context.heartbeat,
            )  # fmt: skip
            loss = mean_loss(likelihoods[name])
            metrics[f"answer_loss{suffix}"] = loss
            metrics[f"answer_perplexity{suffix}"] = math.exp(min(loss, 700.0))
    if len(likelihoods) < 2:
        return MeasurementResult(metrics)
    gain, stderr = paired_gain(likelihoods["sft"], likelihoods["augmented"])
    metrics |= {"augmentation_gain": gain, "augmentation_gain_stderr": stderr}
    losses = {"real": metrics["answer_loss"], "real + synthetic": metrics["answer_loss_augmented"]}
    title = f"Held-out answers at equal steps: {gain:+.4f} ± {stderr:.4f}"
    return MeasurementResult(metrics, [panels.bars(title, losses, unit="nats per token")])


def preference_metrics(context: MeasurementContext) -> MeasurementResult:
    """Measure accuracy and margin of the reward model on held-out rankings."""
    from stages.alignment.encoded_rankings import read_rankings
    from stages.alignment.reward_evaluation import evaluate_rankings
    from stages.models.model_io import load_reward_model

    folder = context.paths["reward"]
    model = load_reward_model(folder).to(context.device)
    length = model.body.config.context_length
    rankings = read_rankings(context.paths["preferences"], "eval", folder, length)
    limit = context.settings.max_preferences or len(rankings)
    found = evaluate_rankings(model, rankings[:limit], context.device, heartbeat=context.heartbeat)
    rows = {f"{a} over {b}": estimate.mean for (a, b), estimate in found.by_ranks.items()}
    return MeasurementResult(
        {
            "reward_accuracy": found.accuracy.mean,
            "reward_margin": found.margin,
            "reward_demonstration_score": found.demonstration_score,
        },
        [panels.bars("Reward model: accuracy by ranks", rows)],
    )


def policy_metrics(context: MeasurementContext) -> MeasurementResult:
    """Measure reward before and after PPO, and the KL between the policies, on held-out prompts."""
    from stages.alignment.policy_comparison import compare_policies

    settings = context.settings
    found = compare_policies(
        *(context.paths[name] for name in ("sft", "policy", "reward", "conversations")),
        max_new_tokens=settings.max_new_tokens, temperature=settings.temperature,
        seed=settings.seed, count=settings.num_prompts, device=context.device,
        heartbeat=context.heartbeat,
    )  # fmt: skip
    panel = panels.samples("Responses before and after PPO", found.samples)
    return MeasurementResult(found.metrics, [panel])


MEASUREMENTS = (
    *(
        Measurement(f"documents:{name}", ("tokens", name), partial(document_metrics, model=name))
        for name in ("base", "sft", "policy")
    ),
    Measurement("answers", ("conversations",), answer_metrics, any_of=("sft", "augmented")),
    Measurement("preferences", ("reward", "preferences"), preference_metrics),
    Measurement("policy", ("sft", "policy", "reward", "conversations"), policy_metrics),
)
"""All measurements, in the order in which metrics are reported."""


def applicable_measurements(inputs: Collection[str]) -> list[Measurement]:
    """Return the measurements that inputs of these names suffice for."""
    return [measurement for measurement in MEASUREMENTS if measurement.is_applicable(inputs)]


def run_measurements(
    rank: Rank,
    names: Sequence[str],
    paths: Mapping[str, Path],
    settings: MeasurementSettings,
    cancel_file: Path | None = None,
) -> dict[str, MeasurementResult]:
    """Run this rank's share of the named measurements.

    Raises:
        Interrupted: cancellation was requested.
    """
    from stages.distributed.cancellation_point import CancellationPoint

    functions = {measurement.name: measurement.run for measurement in MEASUREMENTS}
    context = MeasurementContext(paths, settings, rank.device, CancellationPoint(rank, cancel_file))
    results = {}
    for index, name in enumerate(names):
        if index % rank.world == rank.index:
            results[name] = functions[name](context)
        context.heartbeat()
        if rank.ctx:
            rank.ctx.progress(index + 1, len(names), "measurements")
    return results
