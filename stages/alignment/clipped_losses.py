"""The losses of PPO, a token each (Schulman et al. 2017, eq. 7; value clipping as in its code)."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss(log_probs: Tensor, old: Tensor, advantages: Tensor, clip: float = 0.2) -> Tensor:
    """The clipped surrogate of each token: -min(ratio A, clip(ratio, 1 - c, 1 + c) A)."""
    ratio = (log_probs - old).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float | None = 0.2) -> Tensor:
    """Half the squared error of each token; the larger of it and that of the value held within
    `clip` of the old one."""
    error = (values - returns).square()
    if clip is not None:
        near = old + (values - old).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns).square())
    return 0.5 * error
