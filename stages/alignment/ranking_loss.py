"""K-wise ranking loss: one batch element per prompt, K forward passes, C(K, 2) comparisons.

InstructGPT (Ouyang et al. 2022, eq. 1): loss = -1/C(K,2) sum over pairs log sigma(r_w - r_l).
Pairs of equal rank are dropped, and the mean is over the remaining pairs. Shuffled single pairs
would show each response K - 1 times per epoch and overfit.

Shapes: P prompts, K responses (rows with fewer are padded with rank -1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

NO_RESPONSE = -1


class Comparisons(NamedTuple):
    """Outcome of the comparisons of each prompt, as sums over its pairs; each of shape (P)."""

    pairs: Tensor
    correct: Tensor
    """Pairs whose better response has the higher score (an equal score counts one half)."""
    margin: Tensor
    """Sum of the score differences, better minus worse."""


def better_than(ranks_PK: Tensor) -> Tensor:
    """Return a bool mask (P, K, K) that is True where response i ranks strictly above response
    j."""
    real_PK = ranks_PK != NO_RESPONSE
    both_PKK = real_PK[:, :, None] & real_PK[:, None, :]
    return both_PKK & (ranks_PK[:, :, None] < ranks_PK[:, None, :])


def kwise_loss(scores_PK: Tensor, ranks_PK: Tensor) -> Tensor:
    """Return loss_P of each prompt: the mean of -log sigma(better - worse) over its pairs, 0 if it
    has none."""
    pairs_PKK = better_than(ranks_PK)
    losses_PKK = -F.logsigmoid(scores_PK[:, :, None] - scores_PK[:, None, :])
    total_P = torch.where(pairs_PKK, losses_PKK, 0.0).sum((1, 2))
    return total_P / pairs_PKK.sum((1, 2)).clamp(min=1)


def compare_pairs(scores_PK: Tensor, ranks_PK: Tensor) -> Comparisons:
    """Return how the scores order the responses of each prompt."""
    pairs_PKK = better_than(ranks_PK)
    margin_PKK = torch.where(pairs_PKK, scores_PK[:, :, None] - scores_PK[:, None, :], 0.0)
    correct_PKK = (margin_PKK.sign() + 1) / 2
    return Comparisons(
        pairs_PKK.sum((1, 2)),
        torch.where(pairs_PKK, correct_PKK, 0.0).sum((1, 2)),
        margin_PKK.sum((1, 2)),
    )
