"""A module to train, with its weight-decay and learning-rate rules. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def decays_by_default(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter has weight decay: matrices and embeddings do, vectors do not."""
    return parameter.ndim >= 2


@dataclass
class Trainable:
    """A module to be trained by an engine of its own."""

    module: nn.Module
    lr_ratio: float = 1.0
    """Peak learning rate, over that of the settings."""
    decays: Callable[[str, Tensor], bool] = decays_by_default
    """Return whether a parameter, given by name and tensor, has weight decay."""
    lr_multipliers: Mapping[str, float] = field(default_factory=dict)
    """Learning-rate multiplier by parameter name. Default: 1. The weight decay is divided by it, so
    that an update takes the same share off every decayed weight."""
