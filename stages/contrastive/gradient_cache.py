"""The exact gradient of a large batch in micro-batches (GradCache, Gao et al. 2021).

A contrastive loss compares all pairs of a batch, so that the losses of micro-batches do not add up
to it. It depends on the pairs only through their embeddings:

    1. embed all micro-batches without a graph
    2. compute the loss of all embeddings and its gradient with respect to each
    3. embed each micro-batch again, with a graph, and backpropagate that gradient through it

Memory is that of one micro-batch, work that of two forward passes and one backward pass. The first
forward pass does not update batch-norm statistics. The model must draw no random numbers; all
random choices are made with the pair (`stages.contrastive.pair_dataset`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stages.contrastive.losses import PartialLoss

if TYPE_CHECKING:
    from stages.training.engine import Engine

PairBatch = Mapping[str, Any]
"""`pixels` (B, 3, H, W), `tokens` (B, T) and, with patch dropout, `kept_patches` (B, K)."""
Embeddings = tuple[Tensor, Tensor, Tensor, Tensor]
"""Embeddings of images and captions, logit scale, logit bias."""
LossFunction = Callable[[Tensor, Tensor, Tensor, Tensor], PartialLoss]
"""`Embeddings` -> this rank's part of the loss."""


def backward_whole(
    engine: Engine, pairs: PairBatch, loss_of: LossFunction
) -> tuple[PartialLoss, Tensor]:
    """Run one forward and one backward pass over all of this rank's pairs.

    Returns:
        This rank's part of the loss, and the logit scale it was computed with.
    """
    image_BE, text_BE, scale, bias = _embed(engine, pairs)
    part = loss_of(image_BE, text_BE, scale, bias)
    engine.backward(part.loss)
    return part, scale.detach()


def backward_cached(
    engine: Engine, batches: Sequence[PairBatch], loss_of: LossFunction
) -> tuple[PartialLoss, Tensor]:
    """Compute the gradient of `backward_whole` of the concatenated micro-batches."""
    with torch.no_grad(), frozen_batch_norm_statistics(engine.module):
        cached = [_embed(engine, pairs) for pairs in batches]
    scale, bias = cached[0][2], cached[0][3]
    leaves = [torch.cat([c[0] for c in cached]), torch.cat([c[1] for c in cached]), scale, bias]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    part = loss_of(leaves[0], leaves[1], leaves[2], leaves[3])
    grads = torch.autograd.grad(part.loss, leaves, allow_unused=True, materialize_grads=True)
    sizes = [len(c[0]) for c in cached]
    del cached
    image_grads, text_grads = torch.split(grads[0], sizes), torch.split(grads[1], sizes)
    for i, pairs in enumerate(batches):
        image_BE, text_BE, scale_again, bias_again = _embed(engine, pairs)
        surrogate = (image_BE * image_grads[i]).sum() + (text_BE * text_grads[i]).sum()
        # Every forward pass returns the scale, which counts once: each backpropagates a part.
        of_scale = scale_again * grads[2] + bias_again * grads[3]
        engine.backward(surrogate + of_scale / len(batches), last=i == len(batches) - 1)
    return PartialLoss(part.loss.detach(), part.correct), scale.detach()


def _embed(engine: Engine, pairs: PairBatch) -> Embeddings:
    embeddings: Embeddings = engine(pairs["pixels"], pairs["tokens"], pairs.get("kept_patches"))
    return embeddings


@contextmanager
def frozen_batch_norm_statistics(module: nn.Module) -> Iterator[None]:
    """Keep batch norms in training mode without updates of their running statistics."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
