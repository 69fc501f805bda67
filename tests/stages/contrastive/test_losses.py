"""Losses against their formulas in float64, and gradient caching against the whole batch."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny_clip import RESNET, VIT, captions, images, lively, made
from torch.nn import functional as F

from stages.contrastive.gradient_cache import backward_cached, backward_whole
from stages.contrastive.losses import contrastive_loss, sigmoid_loss
from stages.training.ranks.rank import Rank


def embeddings(count, seed):
    drawn = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return F.normalize(drawn, dim=1).requires_grad_()


def test_the_contrastive_loss_is_its_formula():
    image_BE, text_BE = embeddings(7, 0), embeddings(7, 1)
    scale = torch.tensor(9.0, dtype=torch.double, requires_grad=True)
    share = contrastive_loss(image_BE, text_BE, scale, Rank())
    total = 0.0
    for i in range(7):
        cosines = [(image_BE[i] @ text_BE[j]).item() for j in range(7)]
        total -= 9 * cosines[i] - math.log(sum(math.exp(9 * c) for c in cosines))
        cosines = [(image_BE[j] @ text_BE[i]).item() for j in range(7)]
        total -= 9 * cosines[i] - math.log(sum(math.exp(9 * c) for c in cosines))
    assert share.loss.item() == pytest.approx(total / 14, abs=1e-12)
    nearest = (image_BE @ text_BE.T).argmax(1).eq(torch.arange(7)).sum()
    nearest += (image_BE @ text_BE.T).argmax(0).eq(torch.arange(7)).sum()
    assert share.correct.item() == nearest.item() / 2
    assert torch.autograd.gradcheck(
        lambda x, y, s: contrastive_loss(x, y, s, Rank()).loss, (image_BE, text_BE, scale)
    )


def test_the_sigmoid_loss_is_its_formula():
    image_BE, text_BE = embeddings(5, 2), embeddings(5, 3)
    scale, bias = (torch.tensor(v, dtype=torch.double) for v in (8.0, -3.0))
    share = sigmoid_loss(image_BE, text_BE, scale, bias, Rank())
    total = 0.0
    for i in range(5):
        for j in range(5):
            logit = 8 * (image_BE[i] @ text_BE[j]).item() - 3
            total += math.log1p(math.exp(-logit if i == j else logit))
    assert share.loss.item() == pytest.approx(total / 5, abs=1e-12)
    assert share.correct.item() == (image_BE @ text_BE.T).argmax(1).eq(torch.arange(5)).sum()


class Plain:
    """Engine interface that gradient caching uses, on one process."""

    def __init__(self, module):
        self.module, self.last = module, []

    def __call__(self, *inputs):
        return self.module(*inputs)

    def backward(self, loss, *, last=True):
        self.last.append(last)
        loss.backward()


def gradients(model, batches, loss):
    engine = Plain(model)
    model.zero_grad()
    judge = (
        partial(sigmoid_loss, rank=Rank())
        if loss == "siglip"
        else lambda x, y, scale, bias: contrastive_loss(x, y, scale, Rank())
    )
    if len(batches) == 1:
        share, _ = backward_whole(engine, batches[0], judge)
    else:
        share, _ = backward_cached(engine, batches, judge)
    assert engine.last == [False] * (len(batches) - 1) + [True]
    return share, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def parts(whole, size):
    cut = {name: value.split(size) for name, value in whole.items()}
    return [dict(zip(cut, values, strict=True)) for values in zip(*cut.values(), strict=True)]


@pytest.mark.parametrize(
    ("loss", "hidden"), [("contrastive", False), ("contrastive", True), ("siglip", False)]
)
def test_micro_batches_give_the_gradient_of_the_whole_batch(loss, hidden):
    model = lively(made(replace(VIT, bias=loss == "siglip"))).train()
    whole = {"pixels": images(VIT, 12), "tokens": captions(3).repeat(4, 1)}
    whole["tokens"][:, 2] = torch.arange(12) + 5
    if hidden:
        whole["kept_patches"] = torch.stack([torch.randperm(9)[:4] for _ in range(12)])
    expected = gradients(model, [whole], loss)
    for size in (5, 3):
        found = gradients(model, parts(whole, size), loss)
        assert found[0].loss.item() == pytest.approx(expected[0].loss.item(), abs=1e-6)
        assert found[0].correct.item() == expected[0].correct.item()
        assert set(found[1]) == set(expected[1])
        for name, gradient in found[1].items():
            torch.testing.assert_close(gradient, expected[1][name], rtol=1e-5, atol=1e-6)


def test_batch_norms_count_each_micro_batch_once():
    model = lively(made(RESNET)).train()
    whole = {"pixels": images(RESNET, 6), "tokens": captions(3).repeat(2, 1)}
    plain = lively(made(RESNET)).train()
    for part in parts(whole, 3):
        plain(part["pixels"], part["tokens"])
    gradients(model, parts(whole, 3), "contrastive")
    for (name, one), (_, other) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        if one.is_floating_point():
            torch.testing.assert_close(one, other, msg=name)
