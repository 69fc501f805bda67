"""An optimizer of a package outside the tree: its one file."""

SGD_PLUGIN = """
from stages.training.optim.optimizer_registry import OptimizerSpec, UpdateRule, register_optimizer

def build(groups, settings):
    from stages.training.optim.hooked_optimizer import HookedOptimizer

    class SGD(HookedOptimizer):
        def update(self):
            for group in self.param_groups:
                for parameter in group["params"]:
                    state = self.state[parameter]
                    state["step"] += 1
                    state["momentum"].mul_(0.5).add_(parameter.grad)
                    parameter.add_(state["momentum"], alpha=-group["lr"])

    return SGD(groups, {"lr": settings.lr, "weight_decay": 0.0})

rule = UpdateRule(states=("momentum",), flops_per_weight=4)
register_optimizer(OptimizerSpec("sgd", build, rule))
"""
