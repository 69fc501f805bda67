"""The base class of optimizers: a hook runs before each update and can cancel it.

DeepSpeed knows the norm of the gradient only when it is about to update, one parameter group after
another, and offers no hook there. So the optimizer calls the hook, which may clip the gradients or
cancel the update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stages.training.torch_compat import without_compiler_import

PreUpdateHook = Callable[[list[Tensor]], bool]
"""Takes the gradients, which it may change in place, and returns whether to update."""


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

    def attach_partitions(self, zero_optimizer: Any) -> None:
        """Take note of how DeepSpeed's ZeRO optimizer has flattened the parameter groups. Called
        once, at ZeRO 1 to 3; does nothing by default."""
