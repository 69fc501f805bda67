"""What a batch of pairs costs: each image among all captions and each caption among all images.

The batch is that of all ranks. Each rank gives its share of the loss: the shares add up to the loss
of the whole batch, and so do their gradients, whichever way the work is divided.

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


class Share(NamedTuple):
    """One rank's part of a batch's loss. Summed over ranks: the loss, and the pairs found."""

    loss: Tensor
    """Scalar with a gradient; nats a pair."""
    right: Tensor
    """How many of this rank's images are nearest to their own caption. CLIP's loss, which asks for
    the image of a caption too, has the mean of both."""


class _Gather(torch.autograd.Function):
    """All ranks' rows. Every rank's loss depends on them, so on the way back a row's gradient is
    the sum of what all ranks found."""

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


def gather(x_BE: Tensor, rank: Rank) -> Tensor:
    """Rows_GE of all ranks, in their order, with a gradient. Every rank gives equally many."""
    if rank.world == 1:
        return x_BE
    rows: Tensor = _Gather.apply(x_BE, rank.index, rank.world)  # type: ignore[no-untyped-call]
    return rows


def contrastive_loss(
    image_BE: Tensor, text_BE: Tensor, scale: Tensor, rank: Rank, *, local: bool = False
) -> Share:
    """The symmetric cross-entropy of CLIP: InfoNCE over the rows and columns of all logits.

    Args:
        image_BE: of norm 1; row i belongs with row i of the captions.
        text_BE: of norm 1.
        scale: what cosines are multiplied by.
        rank: among whose group the batch is spread.
        local: compute this rank's rows and columns alone (2 B G logits) instead of all on every
            rank (G^2): the same loss and gradient for less work.
    """
    B, world = len(image_BE), rank.world
    image_GE, text_GE = gather(image_BE, rank), gather(text_BE, rank)
    own_B = torch.arange(rank.index * B, (rank.index + 1) * B, device=image_BE.device)
    if local and world > 1:
        by_image_BG, by_text_BG = scale * image_BE @ text_GE.T, scale * text_BE @ image_GE.T
        sums = F.cross_entropy(by_image_BG, own_B, reduction="sum")
        sums = sums + F.cross_entropy(by_text_BG, own_B, reduction="sum")
        return Share(sums / (2 * B * world), _right(by_image_BG, by_text_BG, own_B))
    logits_GG = scale * image_GE @ text_GE.T
    all_G = torch.arange(B * world, device=image_BE.device)
    loss = (F.cross_entropy(logits_GG, all_G) + F.cross_entropy(logits_GG.T, all_G)) / 2
    return Share(loss / world, _right(logits_GG[own_B], logits_GG.T[own_B], own_B))


def sigmoid_loss(
    image_BE: Tensor, text_BE: Tensor, scale: Tensor, bias: Tensor, rank: Rank
) -> Share:
    """SigLIP (Zhai et al. 2023): every image and caption is a case of its own, right or wrong.

    Each rank judges its images against all captions; only captions travel. Summed over cases,
    divided by the pairs. Arguments as in `contrastive_loss`; `bias` is added to every logit.
    """
    B = len(image_BE)
    own_B = torch.arange(rank.index * B, (rank.index + 1) * B, device=image_BE.device)
    logits_BG = scale * image_BE @ gather(text_BE, rank).T + bias
    signs_BG = -torch.ones_like(logits_BG)
    signs_BG[torch.arange(B), own_B] = 1
    loss = -F.logsigmoid(signs_BG * logits_BG).sum() / (B * rank.world)
    right = (logits_BG.detach().argmax(1) == own_B).double().sum()
    return Share(loss, right)


def _right(by_image_BG: Tensor, by_text_BG: Tensor, own_B: Tensor) -> Tensor:
    found = [(x.detach().argmax(1) == own_B).double().sum() for x in (by_image_BG, by_text_BG)]
    return (found[0] + found[1]) / 2
