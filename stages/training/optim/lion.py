"""Lion: the sign of an interpolated momentum is the update (Chen et al. 2023, arXiv 2302.06675,
algorithm 2).

It keeps one moment instead of AdamW's two. Every weight moves by the learning rate, so the learning
rate is 3 to 10 times smaller than AdamW's, and the weight decay as many times larger (section 5).
The paper's coefficients are beta1 0.9 and beta2 0.99; `eps` has no effect.
"""

from __future__ import annotations

from typing import Any

from stages.training.optim.hooked_optimizer import HookedOptimizer, OptimizerSettings


class Lion(HookedOptimizer):
    """Lion with decoupled weight decay."""

    def update(self) -> None:
        """Update the parameters that have a gradient."""
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["step"] += 1
                momentum = state["exp_avg"]
                direction = momentum.lerp(parameter.grad, 1 - beta1).sign_()
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.add_(direction, alpha=-lr)
                momentum.lerp_(parameter.grad, 1 - beta2)


def build_lion(groups: list[dict[str, Any]], settings: OptimizerSettings) -> Lion:
    """Build the optimizer of these parameter groups."""
    betas = (settings.beta1, settings.beta2)
    return Lion(groups, {"lr": settings.lr, "betas": betas, "weight_decay": settings.weight_decay})
