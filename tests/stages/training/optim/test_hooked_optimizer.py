"""AdamW and clipping against torch's, and the hook before an update."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stages.training.optim.hooked_optimizer import AdamW, clip_gradients
from stages.training.training_params import GradClipMode


def test_updates_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(5)) for _ in range(2))
    options = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.3, "fused": True}
    pair = ((ours, AdamW([ours], **options)), (theirs, torch.optim.AdamW([theirs], **options)))
    for _ in range(4):
        gradient = torch.randn(5, generator=generator)
        for weight, optimizer in pair:
            weight.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(ours, theirs)


def test_a_cancelled_update_changes_nothing() -> None:
    weight = nn.Parameter(torch.ones(3))
    adam = AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.ones(3)
    adam.step()
    before = [weight.clone(), *(v.clone() for v in adam.state[weight].values())]
    seen: list[Tensor] = []

    def refuse(gradients: list[Tensor]) -> bool:
        seen.extend(gradients)
        return False

    adam.pre_update_hook = refuse
    adam.step()
    assert seen == [weight.grad]
    assert all(map(torch.equal, before, [weight, *adam.state[weight].values()]))


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
