"""Muon against numpy and torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stages.training.optim.muon import Muon, orthogonalize
from stages.training.optim.param_groups import block_matrices


def newton_schulz(update: np.ndarray) -> np.ndarray:
    """Return the scaled result for one matrix, as Jordan et al. write it."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update / np.linalg.norm(update)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x * 0.2 * max(update.shape) ** 0.5


@pytest.mark.parametrize("shape", [(6, 6), (5, 9), (9, 5)])
def test_newton_schulz_against_numpy(shape: tuple[int, int]) -> None:
    update = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = orthogonalize(update, torch.float64)
    for one, result in zip(update, found, strict=True):
        np.testing.assert_allclose(result.numpy(), newton_schulz(one.numpy()), rtol=1e-9)
        torch.testing.assert_close(orthogonalize(one, torch.float64), result)
    sizes = torch.linalg.svdvals(found) / (0.2 * max(shape) ** 0.5)
    assert 0.3 < float(sizes.min()) < float(sizes.max()) < 1.3


def test_muon_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(2)
    starts = [torch.randn(shape, generator=generator) for shape in [(6, 4), (4, 6), (5, 5)]]
    mine, theirs = ([nn.Parameter(s.clone()) for s in starts] for _ in range(2))
    groups = [{"params": mine, "weight_decay": 0.1, "block_matrices": True}]
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


def test_block_matrices_exclude_routers() -> None:
    from stages.models.language_model_config import ExpertsConfig
    from stages.models.llama.configuration_llama import LlamaConfig
    from stages.models.llama.modeling_llama import Llama

    shape = LlamaConfig(
        50, 8, num_layers=1, hidden_size=16, num_heads=2, num_kv_heads=1, intermediate_size=8,
        head_size=8, tie_embeddings=False, qk_norm=True,
        experts=ExpertsConfig(num_experts=2, moe_every=1),
    )  # fmt: skip
    found = {name.removeprefix("layers.0.") for name in block_matrices(Llama(shape))}
    assert found == {
        "attention.qkv.weight",
        "attention.out.weight",
        "feed_forward.experts.gate_up",
        "feed_forward.experts.down",
    }
