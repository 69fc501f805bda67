"""Train a reward model: it learns from rankings which of several responses annotators prefer.

    reward:
      uses: reward
      model: ${sft}
      preferences: ${preferences}
      train: {steps: 150, global_batch_size: 16, lr: 3.0e-4}

Metrics on held-out rankings: `accuracy` and `margin` over pairs of responses, `prompts`, and
`demonstration_score`, the mean score of the best responses. `loss` is that of the last step.
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
from stages.chat.template_checks import check_family, check_template
from stages.training.training_params import TrainSection
from stages.training.unsupported_parallelism import LAYOUTS

if TYPE_CHECKING:
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

    unsupported_keys: ClassVar[UnsupportedKeys] = LAYOUTS
    renamed: ClassVar[Mapping[str, str]] = {"centre_samples": "centering_samples"}

    seed: int = 0
    """Seed of the score head and of the order of prompts. Default: the seed of the pipeline."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability of embeddings, attention weights and residual branches. Default: 0."""
    centering_samples: Annotated[int, Field(ge=1)] = 512
    """Training prompts whose best responses get a mean score of 0. Default: 512."""
    train: RewardTrain = RewardTrain()

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield conflicts of the batch with the workers, and a model that cannot score chats."""
        yield from self.train.check(self.workers)
        yield from check_family(upstream, "model", "scalar_head")
        yield from check_template(upstream, "model")


@stage(
    "reward",
    inputs={"model": "Model", "preferences": "Preferences"},
    output="RewardModel",
    version=6,
    metrics={
        "loss": "loss of the last step, nats per pair",
        "accuracy": "share of held-out pairs in the right order",
        "margin": "mean difference of scores of a held-out pair",
        "prompts": "held-out prompts",
        "demonstration_score": "mean score of the best held-out answers",
    },
)
def reward(params: RewardParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Train a reward model on K-wise rankings, all pairs of a prompt as one batch element."""
    from stages.alignment.reward_evaluation import evaluate_folder
    from stages.objectives.reward_modeling import RewardObjective
    from stages.training.run_training import run_training

    preferences = inputs.path("preferences")
    objective = RewardObjective(
        inputs.path("model"), preferences, params.dropout, params.centering_samples
    )
    then = partial(evaluate_folder, folder=out, preferences=preferences)
    final, evaluation = run_training(objective, params, ctx, out, after_export=then)
    ctx.result(
        loss=final["loss"],
        accuracy=evaluation.accuracy,
        margin=evaluation.margin,
        prompts=evaluation.prompts,
        demonstration_score=evaluation.demonstration_score,
    )
    add_panels(evaluation, ctx)


def add_panels(evaluation: RewardEvaluation, ctx: Context) -> None:
    """Add the report panels: the curves, the accuracy by pair of ranks, the mean score by rank."""
    ctx.panel(panels.curve("Ranking loss", ["loss", "eval_loss"], unit="nats per pair"))
    ctx.panel(panels.curve("Accuracy over pairs", ["accuracy", "eval_accuracy"]))
    rows: list[list[str | float]] = [
        [f"{better} over {worse}", round(accuracy, 4), count]
        for (better, worse), (accuracy, count) in evaluation.by_pair.items()
    ]
    pairs = sum(count for _, count in evaluation.by_pair.values())
    rows.append(["all", round(evaluation.accuracy, 4), pairs])
    ctx.panel(panels.table("Held-out accuracy by ranks", ["ranks", "accuracy", "pairs"], rows))
    means = {f"rank {rank}": sum(s) / len(s) for rank, s in evaluation.scores_by_rank.items()}
    ctx.panel(panels.bars("Mean held-out score by rank", means))
