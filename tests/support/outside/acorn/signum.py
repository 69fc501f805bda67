"""Signum: the sign of the momentum is the update (Bernstein et al. 2018, arXiv 1802.04434)."""

from __future__ import annotations

from typing import Any

from stages.training.optim.optimizer_registry import OptimizerSpec, UpdateRule, register_optimizer


def build(groups: list[dict[str, Any]], settings: Any) -> Any:
    """Build the optimizer of these parameter groups."""
    from stages.training.optim.hooked_optimizer import HookedOptimizer

    class Signum(HookedOptimizer):
        def update(self) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is None:
                        continue
                    state = self.state[parameter]
                    state["step"] += 1
                    state["momentum"].lerp_(parameter.grad, 1 - group["beta"])
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(state["momentum"].sign(), alpha=-group["lr"])

    beta, decay = settings.beta1, settings.weight_decay
    return Signum(groups, {"lr": settings.lr, "beta": beta, "weight_decay": decay})


register_optimizer(
    OptimizerSpec("signum", build, UpdateRule(states=("momentum",), flops_per_weight=6))
)
