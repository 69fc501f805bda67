"""The optimizer of a module: which parameters it updates alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from stages.training.expert_parallel import group_name, is_apart
from stages.training.optim.adamw import AdamW
from stages.training.optim.muon import MARK, Muon, matrices

if TYPE_CHECKING:
    from stages.training.objective import Trainable
    from stages.training.training_params import TrainSection

RATE = "rate"
"""Of a parameter group: what the learning rate is multiplied by."""


def optimizer(
    trainable: Trainable, parameters: Mapping[str, Tensor], settings: TrainSection, lr: float
) -> AdamW:
    """AdamW or Muon over groups of parameters that are decayed, spread, turned and paced alike."""
    turned = matrices(trainable.module) if settings.optimizer == "muon" else set()
    kinds: dict[tuple[bool, bool, bool, float], list[Tensor]] = {}
    for name, p in parameters.items():
        pace = trainable.lr_multipliers.get(name, 1.0)
        kind = (trainable.decays(name, p), is_apart(p), name in turned, pace)
        kinds.setdefault(kind, []).append(p)
    groups: list[dict[str, Any]] = []
    for kind in sorted(kinds, reverse=True):
        decays, apart, by_muon, pace = kind
        marks = {"moe": True, "name": group_name(kinds[kind][0])} if apart else {}
        marks |= {MARK: None} if by_muon else {}
        decay = settings.weight_decay / pace if decays else 0.0
        groups.append({"params": kinds[kind], "weight_decay": decay, RATE: pace, **marks})
    betas = (settings.beta1, settings.beta2)
    make = Muon if settings.optimizer == "muon" else AdamW
    adam = make(groups, lr=lr, betas=betas, eps=settings.eps, fused=True)
    set_rate(adam, lr)
    return adam


def set_rate(adam: AdamW, lr: float) -> None:
    """Set the learning rate of each group to its own multiple of `lr`."""
    for group in adam.param_groups:
        group["lr"] = lr * group[RATE]
