"""Clipping of gradients whose global norm is known."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def clip_gradients(gradients: list[Tensor], norm: float, limit: float, mode: str) -> None:
    """Clip gradients in place; a limit of 0 leaves them as they are.

    Args:
        gradients: all gradients that have the norm, or some of them.
        norm: the global L2 norm.
        limit: c of the forms below.
        mode: `norm` multiplies by min(1, c / norm), `norm_soft` by c / (norm + c), which has no
            kink; `value` clamps each element to [-c, c].
    """
    if not limit or not gradients:
        return
    if mode == "value":
        torch._foreach_clamp_min_(gradients, -limit)
        torch._foreach_clamp_max_(gradients, limit)
    elif mode == "norm_soft":
        torch._foreach_mul_(gradients, limit / (norm + limit))
    elif norm + 1e-6 > limit:
        torch._foreach_mul_(gradients, limit / (norm + 1e-6))
