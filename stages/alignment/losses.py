"""The losses of PPO, a token each (Schulman et al. 2017, eq. 7; value clipping as in its code)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class TokenModel(Protocol):
    """A model that is read at marked positions: logits_NV of a policy, values_N of a critic."""

    def __call__(self, tokens_BT: Tensor, *, at_BT: Tensor) -> Tensor:
        """One row a marked position, in row-major order."""


def action_log_probs(
    model: TokenModel, tokens_BT: Tensor, at_BT: Tensor, temperature: float = 1.0
) -> Tensor:
    """Log-probability_N of the token after each marked position under softmax(logits / T).

    This is the distribution that rollouts are drawn from, temperature included.
    """
    log_probs_NV = (model(tokens_BT, at_BT=at_BT).float() / temperature).log_softmax(-1)
    next_N = tokens_BT.roll(-1, 1)[at_BT]
    return log_probs_NV.gather(1, next_N[:, None]).squeeze(1)


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
