"""Train a reward model: it learns from rankings which of several responses annotators prefer.

    reward:
      uses: reward
      model: ${sft}
      preferences: ${preferences}
      train: {steps: 150, global_batch_size: 16, lr: 3.0e-4}

Prompts and responses are encoded by the model's chat template, or by the one that `chat_template`
names. A response that is longer than the context leaves its ranking, because a reward is read at
its end; the ranking stays while two responses of different ranks are left. Rankings are encoded
once, on all cores, and kept in the cache of the store.

Metrics on held-out rankings: `accuracy` and `margin` over pairs of responses, pooled over prompts
here and in the series; `longer_accuracy`, the accuracy of choosing the longer response; both with
a 95 % interval (`_low`, `_high`), bootstrapped by prompt, from 30 pairs on; `longer_preferred`,
`length_correlation` and `length_rank_correlation`, how scores follow length; `calibration_error`;
`prompts`; `demonstration_score`, the mean score of the best responses. The report has the accuracy
by ranks, margin and length, and the reliability of predictions. `loss` is that of the last step.
`responses_too_long` counts responses, `left_out_too_long` rankings; with `eval_` those held out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from pipeline import panels
from pipeline.context import Context
from pipeline.errors import Problem
from pipeline.stage import Inputs, Params, UnsupportedKeys, stage
from stages.chat.template_checks import check_family, check_template, template_externals
from stages.curation.left_out import BOTH_SPLITS_METRICS
from stages.training.planning.foreign_keys import FOREIGN_KEYS
from stages.training.training_params import TrainSection

if TYPE_CHECKING:
    from stages.alignment.encoded_rankings import EncodedRankings
    from stages.alignment.reward_evaluation import RewardEvaluation


class RewardTrain(TrainSection):
    """One pass and a cosine schedule to 10 %, because rankings are overfitted within a few epochs
    (Ouyang et al. 2022, C.2: 64 prompts per batch, learning rate 9e-6 at 6B parameters)."""

    steps: Annotated[int, Field(ge=1)] = 150
    """Optimizer steps. Default: 150."""
    global_batch_size: Annotated[int, Field(ge=1)] = 16
    """Prompts per optimizer step, each with all its responses. Default: 16."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate. Default: 3e-4."""


class RewardParams(Params):
    """Parameters of reward modelling."""

    unsupported_keys: ClassVar[UnsupportedKeys] = FOREIGN_KEYS
    renamed: ClassVar[Mapping[str, str]] = {"centre_samples": "centering_samples"}

    seed: int = 0
    """Seed of the score head and of the order of prompts. Default: the seed of the pipeline."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability of embeddings, attention weights and residual branches. Default: 0."""
    centering_samples: Annotated[int, Field(ge=1)] = 512
    """Training prompts whose best responses get a mean score of 0. Default: 512."""
    chat_template: str | None = None
    """Chat template: `headwater`, `chatml`, `llama3`, `plain`, or the path of a jinja file.
    Default: the model's own."""
    train: RewardTrain = RewardTrain()

    def externals(self) -> dict[str, str]:
        """Return the digest of a chat template in a file."""
        return template_externals(self.chat_template)

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield conflicts of the batch with the workers, and a model that cannot score chats."""
        yield from self.train.check(self.workers)
        yield from check_family(upstream, "model", "scalar_head")
        yield from check_template(upstream, "model", self.chat_template)


@stage(
    "reward",
    inputs={"model": "Model", "preferences": "Preferences"},
    output="RewardModel",
    version=8,
    metrics={
        "loss": "loss of the last step, nats per pair",
        "accuracy": "share of held-out pairs in the right order",
        "accuracy_low": "lower bound of its 95 % interval",
        "accuracy_high": "upper bound of its 95 % interval",
        "longer_accuracy": "share of held-out pairs whose better response is the longer one",
        "longer_accuracy_low": "lower bound of its 95 % interval",
        "longer_accuracy_high": "upper bound of its 95 % interval",
        "longer_preferred": "share of held-out pairs whose longer response scores higher",
        "length_correlation": "Pearson's correlation of score and length per prompt",
        "length_rank_correlation": "the same by Spearman",
        "calibration_error": "mean distance of predicted and observed accuracy",
        "margin": "mean difference of scores of a held-out pair",
        "prompts": "held-out prompts",
        "demonstration_score": "mean score of the best held-out answers",
        "responses_too_long": "responses that leave their rankings",
        "eval_responses_too_long": "the same of held-out rankings",
        **BOTH_SPLITS_METRICS,
    },
)
def reward(params: RewardParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Train a reward model on K-wise rankings, all pairs of a prompt as one batch element."""
    from stages.alignment.reward_evaluation import evaluate_folder
    from stages.objectives.reward_modeling import RewardObjective
    from stages.training.run_training import run_training

    model = inputs.path("model")
    train, held_out = encoded_rankings(model, inputs.path("preferences"), params, ctx)
    objective = RewardObjective(
        model,
        train,
        held_out,
        params.dropout,
        params.centering_samples,
        params.chat_template,
    )
    for panel in CURVES:
        ctx.panel(panel)
    then = partial(evaluate_folder, folder=out, held_out=held_out)
    final, evaluation = run_training(objective, params, ctx, out, after_export=then)
    ctx.result(loss=final["loss"], prompts=len(held_out))
    if evaluation:
        report_evaluation(evaluation, ctx)
    else:
        ctx.result(accuracy=None, margin=None, demonstration_score=None)


def encoded_rankings(
    model: Path, preferences: Path, params: RewardParams, ctx: Context
) -> tuple[EncodedRankings, EncodedRankings]:
    """Return the encoded rankings to train on and those held out, and report those left out.

    Raises:
        InputError: none is left to train on.
    """
    from stages.alignment.encoded_rankings import (
        EncodedRankings,
        RankingEncoder,
        require_rankings,
    )
    from stages.chat.encoded_table import encode_split
    from stages.curation.left_out import report_both_splits
    from stages.models.model_io import read_model_config

    context = read_model_config(model).context_length
    encoder = RankingEncoder(model, context, params.chat_template)
    train, held_out = (
        EncodedRankings(encode_split(encoder, [preferences], split, ctx, params.workers))
        for split in ("train", "eval")
    )
    counts = train.table.counts, held_out.table.counts
    report_both_splits(ctx, "rankings", counts, ("too_long", "refused_by_template"), {})
    for prefix, found in zip(("", "eval_"), counts, strict=True):
        if too_long := found["responses_too_long"]:
            ctx.log(
                f"{prefix}responses_too_long: {too_long:,} of {found['responses']:,} responses are "
                f"longer than the context of {encoder.limit} tokens and leave their rankings"
            )
        ctx.result(**{f"{prefix}responses_too_long": too_long})
    require_rankings(len(train), counts[0], encoder, "train", preferences)
    return train, held_out


CURVES = (
    panels.curve("Ranking loss", ["loss", "eval_loss"], unit="nats per pair"),
    panels.curve("Accuracy over pairs", ["accuracy", "eval_accuracy"]),
)


def report_evaluation(evaluation: RewardEvaluation, ctx: Context) -> None:
    """Report the metrics on held-out rankings, and name a preference for the longer response."""
    for name in ("accuracy", "longer_accuracy"):
        estimate = getattr(evaluation, name)
        low, high = estimate.interval or (None, None)
        ctx.result(**{name: estimate.mean, f"{name}_low": low, f"{name}_high": high})
    longer = evaluation.longer_preferred
    ctx.result(
        margin=evaluation.margin,
        demonstration_score=evaluation.demonstration_score,
        longer_preferred=longer.mean if longer.pairs else None,
        length_correlation=evaluation.length_correlation,
        length_rank_correlation=evaluation.length_rank_correlation,
        calibration_error=evaluation.calibration_error,
    )
    if longer.interval and longer.interval[0] > 0.5:
        ctx.log(
            f"length bias: the longer of two responses scores higher in {longer.mean:.1%} of pairs "
            f"({longer.bounds}); annotators prefer it in {evaluation.longer_accuracy.mean:.1%}"
        )
    add_panels(evaluation, ctx)


def add_panels(evaluation: RewardEvaluation, ctx: Context) -> None:
    """Add the report panels: accuracies with intervals, reliability, the mean score by rank."""
    whole = {
        "the reward model": evaluation.accuracy,
        "the longer response wins": evaluation.longer_accuracy,
        "the longer response scores higher": evaluation.longer_preferred,
    }
    by_ranks = {f"{a} over {b}": estimate for (a, b), estimate in evaluation.by_ranks.items()}
    for title, label, shown in (
        ("Held-out pairs", "share of pairs", whole),
        ("Held-out accuracy by ranks", "ranks", by_ranks),
        ("Held-out accuracy by margin", "distance of scores", evaluation.by_margin),
        ("Held-out accuracy by length", "better response, tokens", evaluation.by_length),
    ):
        rows: list[list[str | float]] = [
            [key, round(found.mean, 4), found.bounds, found.pairs]
            for key, found in shown.items()
            if found.pairs
        ]
        ctx.panel(panels.table(title, [label, "mean", "95 % interval", "pairs"], rows))
    bins = [[round(b.predicted, 4), round(b.observed, 4), b.pairs] for b in evaluation.reliability]
    title = f"Reliability (expected calibration error {evaluation.calibration_error:.3f})"
    ctx.panel(panels.table(title, ["predicted accuracy", "observed accuracy", "pairs"], bins))
    means = {f"rank {rank}": sum(s) / len(s) for rank, s in evaluation.scores_by_rank.items()}
    ctx.panel(panels.bars("Mean held-out score by rank", means))
