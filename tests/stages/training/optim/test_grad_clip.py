"""Clipping against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stages.training.optim.grad_clip import clip_gradients
from stages.training.training_params import GradClipMode


def gradients(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in [(5, 3), (7,), (2, 2, 2)]]


def norm(values: list[Tensor]) -> float:
    return float(torch.cat([value.flatten() for value in values]).norm())


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clipping_by_norm_and_value_is_that_of_torch(limit: float) -> None:
    for by in ("norm", "value"):
        found, parameters = gradients(), [nn.Parameter(torch.zeros_like(g)) for g in gradients()]
        for parameter, gradient in zip(parameters, gradients(), strict=True):
            parameter.grad = gradient
        if by == "norm":
            nn.utils.clip_grad_norm_(parameters, limit)
        else:
            nn.utils.clip_grad_value_(parameters, limit)
        clip_gradients(found, norm(found), limit, by)
        for mine, parameter in zip(found, parameters, strict=True):
            torch.testing.assert_close(mine, parameter.grad)


def test_soft_clipping_keeps_the_direction_and_stays_below_the_limit() -> None:
    for size in (0.01, 1.0, 1e4):
        before = [g * size for g in gradients()]
        after = [g.clone() for g in before]
        clip_gradients(after, norm(before), 2.0, "norm_soft")
        assert norm(after) == pytest.approx(2 * norm(before) / (norm(before) + 2), rel=1e-5)
        for one, other in zip(before, after, strict=True):
            torch.testing.assert_close(other, one * norm(after) / norm(before))


@pytest.mark.parametrize("by", ["norm", "norm_soft", "value"])
def test_no_limit_leaves_gradients_as_they_are(by: GradClipMode) -> None:
    found = gradients()
    clip_gradients(found, norm(found), 0.0, by)
    assert all(map(torch.equal, found, gradients()))
