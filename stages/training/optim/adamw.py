"""AdamW (Loshchilov and Hutter 2019), torch's own, with a pre-update hook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from stages.training.optim.hooked_optimizer import HookedOptimizer
from stages.training.torch_compat import without_compiler_import

if TYPE_CHECKING:
    from stages.training.optim.optimizer_registry import OptimizerSettings

_torch_step = without_compiler_import(torch.optim.AdamW.step)


class AdamW(HookedOptimizer, torch.optim.AdamW):
    """Torch's AdamW, with a hook before each update."""

    def update(self) -> None:
        """Update as torch does."""
        _torch_step(self)


def build_adamw(groups: list[dict[str, Any]], settings: OptimizerSettings) -> AdamW:
    """Build the optimizer of these parameter groups."""
    betas = (settings.beta1, settings.beta2)
    return AdamW(groups, lr=settings.lr, betas=betas, eps=settings.eps, fused=True)
