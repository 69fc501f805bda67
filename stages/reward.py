"""reward: a language model learns which of several responses people like better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from pipeline import panels
from pipeline.context import Context
from pipeline.errors import Problem
from pipeline.stage import Inputs, Params, UnsupportedKeys, stage
from stages.training.training_params import TrainSection
from stages.training.unsupported_parallelism import LAYOUTS

if TYPE_CHECKING:
    from stages.objectives.reward_modeling import Appraisal


class RewardTrain(TrainSection):
    """One pass and a cosine to 10 %: rankings are overfitted within a few epochs (Ouyang et al.
    2022, C.2: 64 prompts a batch, learning rate 9e-6 at 6B parameters)."""

    steps: Annotated[int, Field(ge=1)] = 150
    """Optimizer steps."""
    global_batch_size: Annotated[int, Field(ge=1)] = 16
    """Prompts of one optimizer step, each with all its responses."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate."""


class RewardParams(Params):
    """What a pipeline file may say of the stage."""

    unsupported_keys: ClassVar[UnsupportedKeys] = LAYOUTS

    seed: int = 0
    """Of the head's start and the order of the prompts; the pipeline's, if left out."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the embeddings, the attention weights and both residual branches."""
    centering_samples: Annotated[int, Field(ge=1)] = 512
    """Best responses, a sample of those trained on, whose mean score is made 0."""
    train: RewardTrain = RewardTrain()

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """The batch falls evenly on the workers."""
        yield from self.train.check(self.workers)


@stage(
    "reward",
    inputs={"model": "Model", "preferences": "Preferences"},
    output="RewardModel",
    version=4,
)
def reward(params: RewardParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Train a reward model on K-wise rankings: all pairs of a prompt as one batch element."""
    from stages.objectives.reward_modeling import RewardObjective, appraise
    from stages.training.ranks.worker_group import WorkerGroup
    from stages.training.trainer import fit

    objective = RewardObjective(
        inputs.path("model"), inputs.path("preferences"), params.dropout, params.centering_samples
    )
    with WorkerGroup(params.workers, ctx, params.train.watchdog) as group:
        final = group.run(fit, objective, params.train, seed=params.seed, out=out)[0]
        judged = group.run(appraise, out, inputs.path("preferences"))[0]
    ctx.result(
        loss=final["loss"],
        accuracy=judged.accuracy,
        margin=judged.margin,
        prompts=judged.prompts,
        demonstration_score=judged.demonstrations,
    )
    show(judged, ctx)


def show(judged: Appraisal, ctx: Context) -> None:
    """What people look at: the curves, the accuracy by pair of ranks, the scores by rank."""
    ctx.panel(panels.curve("Ranking loss", ["loss", "eval_loss"], unit="nats a pair"))
    ctx.panel(panels.curve("Pairs ordered as people did", ["accuracy", "eval_accuracy"]))
    rows: list[list[str | float]] = [
        [f"{better} over {worse}", round(right, 4), count]
        for (better, worse), (right, count) in judged.by_ranks.items()
    ]
    pairs = sum(count for _, count in judged.by_ranks.values())
    rows.append(["all", round(judged.accuracy, 4), pairs])
    ctx.panel(panels.table("Held-out accuracy by ranks", ["ranks", "accuracy", "pairs"], rows))
    means = {f"rank {rank}": sum(s) / len(s) for rank, s in judged.by_rank.items()}
    ctx.panel(panels.bars("Mean held-out score by rank", means))
