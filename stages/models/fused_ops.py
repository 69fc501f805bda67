"""Fused operators: fewer passes over memory, and fewer saved activations, than their parts.

The head and its cross-entropy are one operator, so the logits of a whole batch never exist. They
are computed for some rows at a time and used at once: for the loss, and in the same pass for the
gradient of hidden states and head (softmax minus one-hot, Bridle 1990). It takes memory for the
hidden states instead of the vocabulary (as Liger, Hsu et al. 2024, arXiv 2410.10989).

Suffixes as in `stages.models.language_model`: N positions, C width, V vocabulary, I hidden layer.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stages.models.language_model_config import head_rows

IGNORED = -100
"""Target of a position without a loss."""


def linear_cross_entropy(
    x_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, *, z_coef: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the sum over positions of -log softmax(x W^T)[target] + z_coef log^2 Z, in nats, and
    that sum without the second term, which has no gradient: float32 scalars.

    log Z is the logarithm of the softmax's normalizer (Chowdhery et al. 2022, section 5). The
    softmax is computed in float32 whatever the precision of the inputs. Positions whose target is
    -100 add nothing and get no gradient.
    """
    learned_N = targets_N != IGNORED
    if not bool(learned_N.all()):
        x_NC, targets_N = x_NC[learned_N], targets_N[learned_N]
    needs_grad = torch.is_grad_enabled()  # always off inside of an autograd function
    sums: tuple[Tensor, Tensor] = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        x_NC, weight_VC, targets_N, z_coef, needs_grad
    )
    return sums


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a linear layer that computes its gradients in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NC: Tensor,
        weight_VC: Tensor,
        targets_N: Tensor,
        z_coef: float,
        needs_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        needs_grad = needs_grad and any(ctx.needs_input_grad)
        total = x_NC.new_zeros((), dtype=torch.float32)
        squares = torch.zeros_like(total)
        dx_NC, dweight_VC = None, None
        if needs_grad and ctx.needs_input_grad[0]:
            dx_NC = torch.empty_like(x_NC)
        if needs_grad and ctx.needs_input_grad[1]:  # not where the head is frozen
            dweight_VC = torch.zeros_like(weight_VC, dtype=torch.float32)
        rows = head_rows(len(weight_VC), gpu=x_NC.is_cuda)
        for start in range(0, len(x_NC), rows):
            part = slice(start, start + rows)
            target_N1 = targets_N[part, None]
            logits_NV = (x_NC[part] @ weight_VC.T).float()
            target_logit_N1 = logits_NV.gather(1, target_N1)
            top_N1, at_N1 = logits_NV.max(1, keepdim=True)
            probs_NV = logits_NV.softmax(1)
            # The largest probability is at least 1/V, so its logarithm is safe.
            log_z_N1 = top_N1 - probs_NV.gather(1, at_N1).log()
            total += (log_z_N1 - target_logit_N1).sum()
            if z_coef:
                squares += log_z_N1.square().sum()
            if not needs_grad:
                continue
            if z_coef:
                probs_NV *= 1 + 2 * z_coef * log_z_N1
            probs_NV.scatter_add_(1, target_N1, torch.full_like(target_logit_N1, -1.0))
            error_NV = probs_NV.to(x_NC.dtype)
            if dx_NC is not None:
                torch.mm(error_NV, weight_VC, out=dx_NC[part])
            if dweight_VC is not None and x_NC.dtype == torch.float32:
                dweight_VC.addmm_(error_NV.T, x_NC[part])
            elif dweight_VC is not None:
                dweight_VC += error_NV.T @ x_NC[part]
        if needs_grad:
            ctx.save_for_backward(dx_NC, dweight_VC)
            ctx.dtype = weight_VC.dtype
        cross_entropy = total.clone()
        ctx.mark_non_differentiable(cross_entropy)
        return total + z_coef * squares, cross_entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        dx_NC, dweight_VC = ctx.saved_tensors
        if dx_NC is not None:
            dx_NC = dx_NC * gradient.to(dx_NC.dtype)
        if dweight_VC is not None:
            # A sum over many positions may overflow 16 bits until it is scaled down.
            dweight_VC = (dweight_VC * gradient).to(ctx.dtype)
        return dx_NC, dweight_VC, None, None, None


def swiglu(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up of both halves of the last dimension (Shazeer 2020, section 2)."""
    if torch.compiler.is_compiling():  # the compiler fuses it by itself
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
    return cast(Tensor, _SwiGLU.apply(gate_up))  # type: ignore[no-untyped-call]


class _SwiGLU(torch.autograd.Function):
    """SwiGLU that saves only its input and writes both halves of the gradient in place."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        dgate_up = torch.empty_like(gate_up)
        dgate, dup = dgate_up.chunk(2, dim=-1)
        torch.mul(gradient, F.silu(gate), out=dup)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=dgate)
        return dgate_up
