"""Contrastive losses over a batch of pairs that is spread over ranks: CLIP and SigLIP.

Every rank returns its part of the loss. The parts and their gradients add up to those of the whole
batch, however many ranks there are.

Shape suffixes: B pairs of this rank, G pairs of all ranks, E dimensions of an embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

if TYPE_CHECKING:
    from stages.training.ranks.rank import Rank


class PartialLoss(NamedTuple):
    """One rank's part of the loss of a batch; the sum over ranks is the whole."""

    loss: Tensor
    """Scalar with a gradient, nats per pair."""
    correct: Tensor
    """Number of this rank's images whose own caption is the most similar one; for CLIP's loss the
    mean of that and of the captions whose own image is."""


class _GatherFeatures(torch.autograd.Function):
    """All-gather with a gradient: every rank's loss depends on all rows, so that the gradient of a
    row is the sum over ranks."""

    @staticmethod
    def forward(ctx: Any, x_BE: Tensor, index: int, world: int) -> Tensor:
        ctx.own = slice(index * len(x_BE), (index + 1) * len(x_BE))
        parts = [torch.empty_like(x_BE) for _ in range(world)]
        dist.all_gather(parts, x_BE.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        total_GE = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total_GE)
        return total_GE[ctx.own], None, None


def gather_features(x_BE: Tensor, rank: Rank) -> Tensor:
    """Return rows_GE of all ranks in order, with a gradient; every rank gives the same number."""
    if rank.world == 1:
        return x_BE
    rows: Tensor = _GatherFeatures.apply(x_BE, rank.index, rank.world)  # type: ignore[no-untyped-call]
    return rows


def contrastive_loss(
    image_BE: Tensor, text_BE: Tensor, scale: Tensor, rank: Rank, *, local: bool = False
) -> PartialLoss:
    """Return CLIP's symmetric cross-entropy (Radford et al. 2021): InfoNCE over rows and columns.

    Args:
        image_BE: embeddings of norm 1; row i belongs to row i of the captions.
        text_BE: embeddings of norm 1.
        scale: factor of the cosines.
        rank: this process and the group that the batch is spread over.
        local: compute only this rank's rows and columns (2 B G logits) instead of all of them on
            every rank (G^2): the same loss and gradient for less work.
    """
    B, world = len(image_BE), rank.world
    image_GE, text_GE = gather_features(image_BE, rank), gather_features(text_BE, rank)
    own_B = torch.arange(rank.index * B, (rank.index + 1) * B, device=image_BE.device)
    if local and world > 1:
        by_image_BG, by_text_BG = scale * image_BE @ text_GE.T, scale * text_BE @ image_GE.T
        sums = F.cross_entropy(by_image_BG, own_B, reduction="sum")
        sums = sums + F.cross_entropy(by_text_BG, own_B, reduction="sum")
        return PartialLoss(sums / (2 * B * world), _count_correct(by_image_BG, by_text_BG, own_B))
    logits_GG = scale * image_GE @ text_GE.T
    all_G = torch.arange(B * world, device=image_BE.device)
    loss = (F.cross_entropy(logits_GG, all_G) + F.cross_entropy(logits_GG.T, all_G)) / 2
    return PartialLoss(loss / world, _count_correct(logits_GG[own_B], logits_GG.T[own_B], own_B))


def sigmoid_loss(
    image_BE: Tensor, text_BE: Tensor, scale: Tensor, bias: Tensor, rank: Rank
) -> PartialLoss:
    """Return SigLIP's loss (Zhai et al. 2023): binary cross-entropy of every image and caption.

    The sum over all combinations is divided by the number of pairs. Every rank compares its images
    with all captions, so that only captions are gathered. Arguments as in `contrastive_loss`;
    `bias` is added to every logit.
    """
    B = len(image_BE)
    own_B = torch.arange(rank.index * B, (rank.index + 1) * B, device=image_BE.device)
    logits_BG = scale * image_BE @ gather_features(text_BE, rank).T + bias
    signs_BG = -torch.ones_like(logits_BG)
    signs_BG[torch.arange(B), own_B] = 1
    loss = -F.logsigmoid(signs_BG * logits_BG).sum() / (B * rank.world)
    correct = (logits_BG.detach().argmax(1) == own_B).double().sum()
    return PartialLoss(loss, correct)


def _count_correct(by_image_BG: Tensor, by_text_BG: Tensor, own_B: Tensor) -> Tensor:
    found = [(x.detach().argmax(1) == own_B).double().sum() for x in (by_image_BG, by_text_BG)]
    return (found[0] + found[1]) / 2
