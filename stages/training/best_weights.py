"""The weights of the best evaluation of a training.

They are kept next to the checkpoints, as a checkpoint without optimizer states, and are on disk
before any later checkpoint is. So a training that was killed finds the best of all evaluations up
to where it continues; those that it repeats give the same metrics again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.training.checkpoint import CheckpointManager, CheckpointReader

if TYPE_CHECKING:
    from stages.training.engine import Engine
    from stages.training.objective import Metrics
    from stages.training.ranks.rank import Rank


class BestMetric(NamedTuple):
    """The metric of an evaluation that decides."""

    name: str
    highest: bool = False
    """True if the highest value is the best, not the lowest."""

    def is_better(self, value: float, than: float) -> bool:
        """Return whether a value is better than another; NaN never is, and is worse than any."""
        if math.isnan(value) or math.isnan(than):
            return not math.isnan(value)
        return value > than if self.highest else value < than


class BestWeights:
    """Keeper of the weights with the best value of a metric, on every rank and called alike."""

    def __init__(
        self, folder: Path, rank: Rank, metric: BestMetric, log: Callable[[str], None]
    ) -> None:
        self.metric = metric
        self._log = log
        self._saves = CheckpointManager(folder, rank, keep_latest=1, log=log, kinds=("fp32",))
        kept = self._saves.latest()
        self._value: float = CheckpointReader(kept).extra()["value"] if kept else math.nan

    def offer(self, step: int, engines: Mapping[str, Engine], metrics: Metrics) -> None:
        """Keep the weights if the metrics of their evaluation are the best; of equal ones the first
        are."""
        value = metrics.get(self.metric.name, math.nan)
        if self.metric.is_better(value, self._value):
            self._value = value
            self._saves.save(step, engines, {"value": value, "metrics": dict(metrics)})

    def wait(self) -> None:
        """Wait until the kept weights are on disk."""
        self._saves.wait()

    def restore(self, engines: Mapping[str, Engine]) -> dict[str, float]:
        """Fill the engines with the kept weights, and return the metrics of their evaluation and
        `kept_step`; nothing if no evaluation had a value."""
        kept = self._saves.latest()
        if kept is None:
            self._log(f"no evaluation has a {self.metric.name}: the last weights are exported")
            return {}
        extra: dict[str, Any] = self._saves.load(kept, engines)
        self._log(
            f"exporting the weights of step {kept.step}, {self.metric.name} {self._value:.4g}"
        )
        return {**extra["metrics"], "kept_step": float(kept.step)}
