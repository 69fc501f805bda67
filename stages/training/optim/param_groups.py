"""Parameter groups: parameters with the same weight decay, update rule and learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from stages.training.expert_parallel import expert_group_name, is_expert_sharded
from stages.training.optim.optimizer_registry import find_optimizer

if TYPE_CHECKING:
    from stages.training.optim.hooked_optimizer import HookedOptimizer, OptimizerSettings
    from stages.training.trainable import Trainable


def build_optimizer(
    trainable: Trainable, parameters: Mapping[str, Tensor], settings: OptimizerSettings, lr: float
) -> HookedOptimizer:
    """Build the optimizer of a module's parameters, by name; `lr` is its learning rate.

    A group has, next to torch's keys, `lr_multiplier`, `block_matrices` (whether the spec's
    `matrix_rule` updates it) and `states`, the names of the states per parameter.
    """
    spec = find_optimizer(settings.optimizer)
    matrices = block_matrices(trainable.module) if spec.matrix_rule else set()
    members: dict[tuple[bool, bool, bool, float], list[Tensor]] = {}
    for name, p in parameters.items():
        multiplier = trainable.lr_multipliers.get(name, 1.0)
        key = (trainable.decays(name, p), is_expert_sharded(p), name in matrices, multiplier)
        members.setdefault(key, []).append(p)
    groups: list[dict[str, Any]] = []
    for key in sorted(members, reverse=True):
        decays, sharded, is_matrix, multiplier = key
        groups.append(
            {
                "params": members[key],
                "weight_decay": settings.weight_decay / multiplier if decays else 0.0,
                "lr_multiplier": multiplier,
                "block_matrices": is_matrix,
                "states": spec.rule_of(block_matrix=is_matrix).states,
                # DeepSpeed reduces and shards groups with these two keys among the ranks that hold
                # the same experts.
                **({"moe": True, "name": expert_group_name(members[key][0])} if sharded else {}),
            }
        )
    optimizer = spec.build(groups, settings)
    optimizer.set_lr(lr)
    return optimizer


def block_matrices(module: nn.Module) -> set[str]:
    """Return the names of the matrices of repeated blocks, routers excluded."""
    lists = [f"{n}." for n, m in module.named_modules() if isinstance(m, nn.ModuleList)]
    return {
        name
        for name, parameter in module.named_parameters()
        if parameter.ndim in (2, 3)
        and any(name.startswith(blocks) for blocks in lists)
        and "router" not in name.split(".")
    }
