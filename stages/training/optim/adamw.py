"""Optimizers whose updates wait for a word, and the forms of clipping.

DeepSpeed knows the norm of the gradient only when it is about to update, group after group, and
asks nobody; so the optimizer does, and what it asks may clip the gradients or call the update off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from stages.training.training_params import GradClipMode

Admit = Callable[[list[Tensor]], bool]
"""Given gradients, says whether to update; it may have clipped them."""


class AdamW(torch.optim.AdamW):
    """Torch's own, less the decorators that import its compiler (2.5 s and 60 MB a rank) merely
    to say that an optimizer is not to be compiled.

    `admit` is asked before each step; where it says no, weights and moments stay as they are.
    """

    admit: Admit = staticmethod(lambda _: True)
    zero_grad = torch.optim.Optimizer.zero_grad.__wrapped__  # type: ignore[attr-defined]
    add_param_group = torch.optim.Optimizer.add_param_group.__wrapped__  # type: ignore[attr-defined]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the groups that are set, if it is admitted."""
        if self.admit(list(self._gradients())):
            self._plain_step()

    def _plain_step(self) -> None:
        torch.optim.AdamW.step.__wrapped__(self)  # type: ignore[attr-defined]

    def _gradients(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from (p.grad for p in group["params"] if p.grad is not None)


@torch.no_grad()
def clip(gradients: list[Tensor], norm: float, limit: float, by: GradClipMode) -> None:
    """Clip gradients in place; a limit of 0 leaves them as they are.

    Args:
        gradients: all, or a part, of those that have the norm.
        norm: the global L2 norm.
        limit: c of the forms below.
        by: `norm` multiplies by min(1, c / norm), `norm_soft` by c / (norm + c), which has no
            kink; `value` brings each number into [-c, c].
    """
    if not limit or not gradients:
        return
    if by == "value":
        torch._foreach_clamp_min_(gradients, -limit)
        torch._foreach_clamp_max_(gradients, limit)
    elif by == "norm_soft":
        torch._foreach_mul_(gradients, limit / (norm + limit))
    elif norm + 1e-6 > limit:
        torch._foreach_mul_(gradients, limit / (norm + 1e-6))
