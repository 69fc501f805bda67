"""Advantages of tokens from the score of a response: rewards per token, GAE, whitening.

    token            a      b      c    </s>
    reward        -b kl  -b kl  -b kl  -b kl + score

Shapes: B responses, R tokens of the longest; mask_BR is True for the tokens of a response, which
come first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class KLEstimates(NamedTuple):
    """Monte-Carlo estimates of KL(policy || reference) per token (Schulman, "Approximating KL
    divergence", 2020)."""

    k1: Tensor
    """log p - log q: the only one whose penalty has the gradient of the KL. Used in the reward."""
    k3: Tensor
    """q/p - 1 - log(q/p): never negative. Reported only."""


def kl_estimates(log_probs_BR: Tensor, reference_BR: Tensor) -> KLEstimates:
    """Return both estimates from the log-probabilities of tokens that the policy sampled."""
    log_ratio_BR = log_probs_BR - reference_BR
    return KLEstimates(log_ratio_BR, torch.expm1(-log_ratio_BR) + log_ratio_BR)


def token_rewards(
    scores_B: Tensor, log_probs_BR: Tensor, reference_BR: Tensor, mask_BR: Tensor, beta: float
) -> Tensor:
    """Return reward_BR of each token: -beta k1, plus the score on the last one.

    The last token is the end token, or the last sampled one of a truncated response: never a
    padding token, where credit would be lost.
    """
    k1_BR = kl_estimates(log_probs_BR, reference_BR).k1
    rewards_BR = torch.where(mask_BR, -beta * k1_BR, 0.0)
    return rewards_BR.scatter_add(1, last_token(mask_BR)[:, None], scores_B[:, None])


def last_token(mask_BR: Tensor) -> Tensor:
    """Return index_B of the last token of each response."""
    return mask_BR.sum(1) - 1


def gae(
    rewards_BR: Tensor,
    values_BR: Tensor,
    mask_BR: Tensor,
    *,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
) -> Tensor:
    """Return generalised advantage estimates_BR (Schulman et al. 2016, eq. 16).

    A_t = sum over l of (gamma gae_lambda)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t; the
    value after the last token of a response is 0, whether it ended or was truncated.
    """
    values_BR = torch.where(mask_BR, values_BR, 0.0)
    rewards_BR = torch.where(mask_BR, rewards_BR, 0.0)
    next_BR = torch.cat([values_BR[:, 1:], torch.zeros_like(values_BR[:, :1])], 1)
    delta_BR = rewards_BR + gamma * next_BR - values_BR
    advantages_BR = torch.zeros_like(delta_BR)
    running_B = torch.zeros_like(delta_BR[:, 0])
    for t in reversed(range(delta_BR.shape[1])):
        running_B = delta_BR[:, t] + gamma * gae_lambda * running_B
        advantages_BR[:, t] = running_B
    return torch.where(mask_BR, advantages_BR, 0.0)


def whiten(values_BR: Tensor, mask_BR: Tensor, eps: float = 1e-8) -> Tensor:
    """Return values of mean 0 and variance 1 over the tokens of responses, 0 elsewhere."""
    real = values_BR[mask_BR]
    scale = (real.var(correction=0) + eps).rsqrt()
    return torch.where(mask_BR, (values_BR - real.mean()) * scale, 0.0)
