"""The part that all training stages share: start the ranks, train, and examine the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pipeline.context import Context
    from pipeline.stage import Workers
    from stages.training.best_weights import BestMetric
    from stages.training.objective import Objective
    from stages.training.ranks.rank import Rank
    from stages.training.training_params import TrainSection


class TrainingParams(Protocol):
    """Parameters of a stage that trains."""

    @property
    def workers(self) -> Workers:
        """Return the processes of the stage."""

    @property
    def train(self) -> TrainSection:
        """Return the training section."""

    @property
    def seed(self) -> int:
        """Return the seed of weights and data order."""


def run_training(
    objective: Objective,
    params: TrainingParams,
    ctx: Context,
    out: Path,
    *,
    after_export: Callable[[Rank], Any] | None = None,
    keep: BestMetric | None = None,
) -> tuple[dict[str, float], Any]:
    """Train an objective on a group of ranks and export the model to `out`.

    Args:
        objective: model, data and loss.
        params: training parameters, and number of ranks.
        ctx: the context of the stage.
        out: folder of the model.
        after_export: called with each rank after the export, in the same processes.
        keep: the metric whose best evaluation decides which weights are exported. Default: the last
            weights are.

    Returns:
        The final metrics, and what `after_export` returned on rank 0.
    """
    from stages.training.ranks.worker_group import WorkerGroup
    from stages.training.trainer import fit

    with WorkerGroup(params.workers, ctx, params.train.watchdog) as group:
        final = group.run(fit, objective, params.train, seed=params.seed, out=out, keep=keep)[0]
        return final, group.run(after_export)[0] if after_export else None
