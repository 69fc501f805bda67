"""Clipping and optimizers against torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stages.training.optim.adamw import AdamW, clip
from stages.training.optim.muon import MARK, Muon, matrices, orthogonal
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
        clip(found, norm(found), limit, by)
        for mine, parameter in zip(found, parameters, strict=True):
            torch.testing.assert_close(mine, parameter.grad)


def test_soft_clipping_keeps_the_direction_and_stays_below_the_limit() -> None:
    for size in (0.01, 1.0, 1e4):
        before = [g * size for g in gradients()]
        after = [g.clone() for g in before]
        clip(after, norm(before), 2.0, "norm_soft")
        assert norm(after) == pytest.approx(2 * norm(before) / (norm(before) + 2), rel=1e-5)
        for one, other in zip(before, after, strict=True):
            torch.testing.assert_close(other, one * norm(after) / norm(before))


@pytest.mark.parametrize("by", ["norm", "norm_soft", "value"])
def test_no_limit_leaves_gradients_as_they_are(by: GradClipMode) -> None:
    found = gradients()
    clip(found, norm(found), 0.0, by)
    assert all(map(torch.equal, found, gradients()))


def test_a_step_that_is_not_admitted_changes_nothing() -> None:
    weight = nn.Parameter(torch.ones(3))
    adam = AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.ones(3)
    adam.step()
    before = [weight.clone(), *(v.clone() for v in adam.state[weight].values())]
    asked: list[Tensor] = []

    def refuse(found: list[Tensor]) -> bool:
        asked.extend(found)
        return False

    adam.admit = refuse
    adam.step()
    assert asked == [weight.grad]
    assert all(map(torch.equal, before, [weight, *adam.state[weight].values()]))


def newton_schulz(update: np.ndarray) -> np.ndarray:
    """As Jordan et al. write it, on one matrix."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update / np.linalg.norm(update)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x * 0.2 * max(update.shape) ** 0.5


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (9, 5)])
def test_newton_schulz_against_numpy(shape: tuple[int, int]) -> None:
    update = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = orthogonal(update, torch.float64)
    for one, turned in zip(update, found, strict=True):
        np.testing.assert_allclose(turned.numpy(), newton_schulz(one.numpy()), rtol=1e-9)
        torch.testing.assert_close(orthogonal(one, torch.float64), turned)
    sizes = torch.linalg.svdvals(found) / (0.2 * max(shape) ** 0.5)
    assert 0.3 < float(sizes.min()) < float(sizes.max()) < 1.3


def test_muon_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(2)
    starts = [torch.randn(shape, generator=generator) for shape in [(6, 4), (4, 6), (5, 5)]]
    mine, theirs = ([nn.Parameter(s.clone()) for s in starts] for _ in range(2))
    groups = [{"params": mine, "weight_decay": 0.1, MARK: None}]
    muon = Muon(groups, lr=0.02, fused=True)
    muon.precision = torch.bfloat16
    for parameter in mine:
        muon.state[parameter] = {"step": torch.zeros(()), "momentum": torch.zeros_like(parameter)}
    torchs = torch.optim.Muon(theirs, 0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for one, other in zip(mine, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        muon.step()
        torchs.step()
    for one, other, start in zip(mine, theirs, starts, strict=True):
        assert not torch.allclose(one, start, atol=1e-2)
        torch.testing.assert_close(one, other)


def test_muon_takes_the_matrices_of_blocks_and_no_router() -> None:
    from stages.models.language_model_config import ExpertsConfig, LlamaConfig
    from stages.models.llama.modeling_llama import Llama

    shape = LlamaConfig(
        50, 8, num_layers=1, hidden_size=16, num_heads=2, num_kv_heads=1, intermediate_size=8, head_size=8, tie_embeddings=False,
        qk_norm=True, experts=ExpertsConfig(num_experts=2, moe_every=1),
    )  # fmt: skip
    found = {name.removeprefix("layers.0.") for name in matrices(Llama(shape))}
    assert found == {
        "attention.qkv.weight",
        "attention.out.weight",
        "feed_forward.experts.gate_up",
        "feed_forward.experts.down",
    }
