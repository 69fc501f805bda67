"""Optimizers whose updates wait for a word: DeepSpeed knows the norm of the gradient only when it
is about to update, group after group, and asks nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class AdamW(torch.optim.AdamW):
    """Torch's own, less the decorators that import its compiler (2.5 s and 60 MB a rank) merely
    to say that an optimizer is not to be compiled.

    `admit` is asked before each step; where it says no, weights and moments stay as they are.
    """

    admit: Callable[[], bool] = staticmethod(lambda: True)
    zero_grad = torch.optim.Optimizer.zero_grad.__wrapped__  # type: ignore[attr-defined]
    add_param_group = torch.optim.Optimizer.add_param_group.__wrapped__  # type: ignore[attr-defined]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the groups that are set, if it is admitted."""
        if self.admit():
            torch.optim.AdamW.step.__wrapped__(self, closure)  # type: ignore[attr-defined]
