"""The fused head and loss against torch's own, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from stages.models import fused_ops
from stages.models.fused_ops import IGNORED, linear_cross_entropy, swiglu
from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.gpt2.modeling_gpt2 import GPT

N, C, V = 37, 24, 101


def inputs(dtype: torch.dtype = torch.float32, ignored: int = 0, scale: float = 1.0):
    torch.manual_seed(0)
    x = (scale * torch.randn(N, C)).to(dtype).requires_grad_()
    weight = torch.randn(V, C).to(dtype).requires_grad_()
    targets = torch.randint(0, V, (N,))
    targets[torch.randperm(N)[:ignored]] = IGNORED
    return x, weight, targets


def reference(x, weight, targets, z_coef=0.0):
    """The loss and both gradients, in float64, by torch's cross-entropy of all logits."""
    x, weight = (part.detach().double().requires_grad_() for part in (x, weight))
    logits = x @ weight.T
    loss = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED)
    loss = loss + z_coef * logits.logsumexp(1)[targets != IGNORED].square().sum()
    loss.backward()
    return loss.detach(), x.grad, weight.grad


@pytest.mark.parametrize("ignored", [0, 11, N])
@pytest.mark.parametrize("rows", [1, 5, N, 4 * N])
def test_loss_and_gradients_are_those_of_all_logits(
    monkeypatch: pytest.MonkeyPatch, rows: int, ignored: int
) -> None:
    monkeypatch.setattr(fused_ops, "head_rows", lambda *_, **__: rows)
    x, weight, targets = inputs(ignored=ignored)
    loss = linear_cross_entropy(x, weight, targets)[0]
    (3 * loss).backward()
    want, dx, dweight = reference(x, weight, targets)
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=0)
    torch.testing.assert_close(x.grad.double(), 3 * dx, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight.grad.double(), 3 * dweight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [5, N])
def test_z_loss_is_added_with_its_gradient(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(fused_ops, "head_rows", lambda *_, **__: rows)
    x, weight, targets = inputs(ignored=4)
    total, cross_entropy = linear_cross_entropy(x, weight, targets, z_coef=0.02)
    (3 * total).backward()
    want, dx, dweight = reference(x, weight, targets, z_coef=0.02)
    torch.testing.assert_close(total.double(), want, rtol=1e-6, atol=0)
    torch.testing.assert_close(x.grad.double(), 3 * dx, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight.grad.double(), 3 * dweight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cross_entropy.double(), reference(x, weight, targets)[0])


def test_a_certain_and_wrong_answer_costs_what_it_should() -> None:
    """Its share is 0 in float32; its cost is not infinite."""
    x, weight, targets = inputs(scale=300.0)
    want, _, _ = reference(x, weight, targets)
    found = linear_cross_entropy(x, weight, targets)[0]
    assert want > 1000 * N
    torch.testing.assert_close(found.double(), want, rtol=1e-6, atol=0)


def test_bfloat16_is_summed_in_float32() -> None:
    x, weight, targets = inputs(torch.bfloat16)
    loss = linear_cross_entropy(x, weight, targets)[0]
    loss.backward()
    assert (loss.dtype, x.grad.dtype) == (torch.float32, torch.bfloat16)
    want, dx, dweight = reference(x, weight, targets)
    torch.testing.assert_close(loss.double(), want, rtol=2e-3, atol=0)
    torch.testing.assert_close(x.grad.double(), dx, rtol=0.02, atol=0.05)
    torch.testing.assert_close(weight.grad.double(), dweight, rtol=0.02, atol=0.05)


def test_without_a_gradient_none_is_made() -> None:
    x, weight, targets = inputs()
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        loss = linear_cross_entropy(x, weight, targets)[0]
    assert counted.get_total_flops() == 2 * N * C * V, "the logits, and no more"
    assert not loss.requires_grad
    assert loss == linear_cross_entropy(x, weight, targets)[0]


def test_a_sum_beyond_16_bits_is_scaled_before_it_is_rounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fused_ops, "head_rows", lambda *_, **__: 1)
    x, weight, targets = inputs(torch.float16)
    with torch.no_grad():
        x[:, 0], targets[:] = 6e4, 3
    (linear_cross_entropy(x, 0 * weight, targets)[0] * 1e-4).backward()
    assert weight.grad is not None and torch.isfinite(weight.grad).all()


def test_a_model_gives_the_loss_of_its_logits() -> None:
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(vocab_size=V, context_length=16, num_layers=2, hidden_size=C, num_heads=4)
    )
    tokens = torch.randint(0, V, (3, 16))
    targets = torch.where(torch.rand(3, 16) < 0.3, IGNORED, torch.randint(0, V, (3, 16)))
    loss = model(tokens, targets_BT=targets)
    found = torch.autograd.grad(loss, list(model.parameters()))
    plain = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="sum")
    want = torch.autograd.grad(plain, list(model.parameters()))
    torch.testing.assert_close(loss, plain)
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_swiglu_is_silu_of_the_gate_times_up() -> None:
    gate_up = torch.randn(5, 3, 14, dtype=torch.double, requires_grad=True)
    gate, up = gate_up.chunk(2, dim=-1)
    torch.testing.assert_close(swiglu(gate_up), gate * torch.sigmoid(gate) * up)
    assert torch.autograd.gradcheck(swiglu, gate_up)
