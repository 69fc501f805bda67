"""The base class of optimizers, the clipping before an update, and AdamW.

The gradient norm is available only inside DeepSpeed's optimizer step, which runs for one parameter
group after another and offers no hook. So the optimizer itself calls a hook before each update,
which may clip the gradients or cancel the update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from stages.training.torch_compat import without_compiler_import

PreUpdateHook = Callable[[list[Tensor]], bool]
"""Takes the gradients, which it may change in place, and returns whether to update."""

_adamw_step = without_compiler_import(torch.optim.AdamW.step)


class OptimizerSettings(Protocol):
    """The hyperparameters that optimizers read; `TrainSection` has them."""

    @property
    def optimizer(self) -> str:
        """Return the name of the optimizer."""

    @property
    def lr(self) -> float:
        """Return the peak learning rate."""

    @property
    def beta1(self) -> float:
        """Return the decay rate of the first moment."""

    @property
    def beta2(self) -> float:
        """Return the decay rate of the second moment."""

    @property
    def eps(self) -> float:
        """Return the term added to the root of the second moment."""

    @property
    def weight_decay(self) -> float:
        """Return the decoupled weight decay."""


class HookedOptimizer(torch.optim.Optimizer):
    """An optimizer whose `step` calls `pre_update_hook` first.

    If the hook returns False, weights and states stay as they are. A subclass defines `update`. It
    finds the states that its `OptimizerSpec` names in `self.state[parameter]`, with a float32
    `step` next to them, all zero before the first update.
    """

    pre_update_hook: PreUpdateHook = staticmethod(lambda _: True)
    zero_grad = without_compiler_import(torch.optim.Optimizer.zero_grad)
    add_param_group = without_compiler_import(torch.optim.Optimizer.add_param_group)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters of the present groups, unless the hook cancels it."""
        parameters = (p for group in self.param_groups for p in group["params"])
        if self.pre_update_hook([p.grad for p in parameters if p.grad is not None]):
            self.update()

    def update(self) -> None:
        """Update the parameters of `self.param_groups` that have a gradient."""
        raise NotImplementedError

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of each group to its multiple of `lr`."""
        for group in self.param_groups:
            group["lr"] = lr * group["lr_multiplier"]

    def attach_partitions(self, zero_optimizer: Any) -> None:
        """Record how DeepSpeed's ZeRO optimizer has flattened the parameter groups. Called once, at
        ZeRO 1 to 3. Default: nothing is recorded."""


class AdamW(HookedOptimizer, torch.optim.AdamW):
    """Torch's AdamW (Loshchilov and Hutter 2019), with a hook before each update."""

    def update(self) -> None:
        """Update as torch does."""
        _adamw_step(self)


def build_adamw(groups: list[dict[str, Any]], settings: OptimizerSettings) -> AdamW:
    """Build the optimizer of these parameter groups."""
    betas = (settings.beta1, settings.beta2)
    return AdamW(groups, lr=settings.lr, betas=betas, eps=settings.eps, fused=True)


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
