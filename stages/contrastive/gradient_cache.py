"""The exact gradient of a large batch in micro-batches (GradCache, Gao et al. 2021).

A contrastive loss looks at all pairs at once, so micro-batches cannot simply be added up. But it
sees them through their embeddings alone:

    1. embed all micro-batches, without a graph
    2. loss of all embeddings; its gradient with respect to each
    3. embed each micro-batch again, with a graph, and backpropagate that gradient through it

The memory is that of one micro-batch, the work that of two forward passes and one backward pass.
The first forward pass leaves the statistics of batch norms alone. The model must draw no random
numbers: what is random about a pair is drawn with it (`stages.contrastive.pair_dataset`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stages.contrastive.losses import Share

if TYPE_CHECKING:
    from stages.training.engine import Engine

Pairs = Mapping[str, Any]
"""`pixels` (B, 3, H, W), `tokens` (B, T) and, where patches are hidden, `places` (B, K)."""
Embedded = tuple[Tensor, Tensor, Tensor, Tensor]
"""Embeddings of images and captions, scale, bias."""
Judge = Callable[[Tensor, Tensor, Tensor, Tensor], Share]
"""What `Embedded` is of -> this rank's share of the loss."""


def backward_whole(engine: Engine, pairs: Pairs, judge: Judge) -> tuple[Share, Tensor]:
    """One forward and one backward pass over all of this rank's pairs.

    Returns:
        The share of the loss, and the scale that it was computed with.
    """
    image_BE, text_BE, scale, bias = _embedded(engine, pairs)
    share = judge(image_BE, text_BE, scale, bias)
    engine.backward(share.loss)
    return share, scale.detach()


def backward_cached(engine: Engine, batches: Sequence[Pairs], judge: Judge) -> tuple[Share, Tensor]:
    """The same gradient as `backward_whole` of all micro-batches in a row."""
    with torch.no_grad(), frozen_statistics(engine.module):
        made = [_embedded(engine, pairs) for pairs in batches]
    scale, bias = made[0][2], made[0][3]
    leaves = [torch.cat([m[0] for m in made]), torch.cat([m[1] for m in made]), scale, bias]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    share = judge(leaves[0], leaves[1], leaves[2], leaves[3])
    grads = torch.autograd.grad(share.loss, leaves, allow_unused=True, materialize_grads=True)
    sizes = [len(m[0]) for m in made]
    del made
    image_grads, text_grads = torch.split(grads[0], sizes), torch.split(grads[1], sizes)
    for i, pairs in enumerate(batches):
        image_BE, text_BE, scale_again, bias_again = _embedded(engine, pairs)
        surrogate = (image_BE * image_grads[i]).sum() + (text_BE * text_grads[i]).sum()
        # The scale is in all forward passes, and counts once: each hands back its part.
        of_one = scale_again * grads[2] + bias_again * grads[3]
        engine.backward(surrogate + of_one / len(batches), last=i == len(batches) - 1)
    return Share(share.loss.detach(), share.right), scale.detach()


def _embedded(engine: Engine, pairs: Pairs) -> Embedded:
    made: Embedded = engine(pairs["pixels"], pairs["tokens"], pairs.get("places"))
    return made


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms normalise as in training, but remember nothing of it."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
