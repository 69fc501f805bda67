"""The costs of an optimizer on one model: memory, traffic and FLOPs of an update.

Brings the update rules of `stages.training.optim.optimizer_registry` and the matrices of a model
together. Imports no torch: `headwater plan` reads this module.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.models.language_model_config import Matrix
    from stages.training.optim.optimizer_registry import OptimizerSpec


@dataclass(frozen=True)
class OptimizerCost:
    """The costs of one optimizer on one model."""

    state_bytes: float
    """Bytes per weight of the optimizer's states, without the float32 master weight: the mean over
    all weights."""
    update_bytes: float
    """Bytes per weight of memory traffic of an update, likewise."""
    update_flops: float = 0.0
    """FLOPs of the matrix products of one update of all weights."""
    gathered_weights: float = 0.0
    """Weights whose momentum ZeRO 1 and 2 gather in float32 for an update."""


ADAMW = OptimizerCost(state_bytes=8.0, update_bytes=30.0)


def optimizer_cost(
    spec: OptimizerSpec, matrices: Iterable[Matrix], parameters: int
) -> OptimizerCost:
    """Return the costs of an optimizer.

    Args:
        spec: the optimizer.
        matrices: the weight matrices of the model's blocks.
        parameters: all weights of the model.
    """
    matrices = list(matrices)
    block = sum(number * rows * columns for number, rows, columns in matrices)
    other = parameters - block
    return OptimizerCost(
        spec.state_bytes(block, other) / parameters,
        spec.update_bytes(block, other) / parameters,
        spec.update_flops(matrices, other) if spec.gathers_matrices else 0.0,
        float(block) if spec.gathers_matrices else 0.0,
    )
