"""Results of one training step: the updates of each engine, and the metrics of the objective.

Imports no torch, so that objectives can name these types at the top of a stage's module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class EngineStep(NamedTuple):
    """The outcome of one `Engine.step()`, identical on every rank."""

    engine: str
    """Name of the engine."""
    grad_norm: float
    """Global L2 norm of the gradient before clipping; inf or NaN if it was not finite."""
    lr: float = 0.0
    """Learning rate of parameters without a multiplier of their own."""
    skip_reason: str = ""
    """Reason why the update was skipped. Default: empty, for an update that was made."""
    is_anomaly: bool = False
    """True if weights or data may be bad. False for an overflow of the float16 loss scale and for
    a spike of the gradient norm alone."""

    @property
    def applied(self) -> bool:
        """Return whether the weights were updated."""
        return not self.skip_reason

    @property
    def is_spike(self) -> bool:
        """Return whether the update was skipped although its gradient was finite."""
        return not self.applied and math.isfinite(self.grad_norm)


@dataclass(frozen=True)
class StepResult:
    """The return value of `Objective.step`, identical on every rank."""

    metrics: Mapping[str, Any]
    """Metrics of the step by name; the trainer itself reads `loss`."""
    updates: Sequence[EngineStep]
    """Outcome of every optimizer step, in the order in which they were made."""
    tokens: float = 0.0
    """Number of positions computed, over all ranks; 0 if the objective does not count tokens."""
