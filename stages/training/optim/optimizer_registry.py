"""Registry of optimizers: one entry per optimizer, read by training and by `headwater plan`.

An entry names the function that builds the optimizer and states what it keeps per weight, where it
runs and what an update costs, so that no other module compares names of optimizers. A package of
its own adds one with `register_optimizer` (see `pipeline.plugins`):

    def build(groups, settings):
        import torch
        from stages.training.optim.hooked_optimizer import HookedOptimizer
        class SGD(HookedOptimizer): ...
        return SGD(groups, {"lr": settings.lr})

    register_optimizer(OptimizerSpec("sgd", build, UpdateRule(states=(), flops_per_weight=2)))

Imports no torch, because `headwater plan` reads this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.plugins import load_plugins

if TYPE_CHECKING:
    from stages.training.optim.hooked_optimizer import HookedOptimizer, OptimizerSettings


Builder = Callable[[list[dict[str, Any]], "OptimizerSettings"], "HookedOptimizer"]
"""Builds an optimizer of parameter groups. Each group brings its own `weight_decay`."""

FP32 = 4


@dataclass(frozen=True)
class UpdateRule:
    """State and cost of the update of one weight."""

    states: tuple[str, ...]
    """Names of the float32 tensors that are kept per parameter, in the optimizer's state and in
    checkpoints. The count of updates, `step`, is not one of them."""
    flops_per_weight: float
    """Element-wise operations of one update."""
    matrix_flops: Callable[[int, int], float] | None = None
    """FLOPs of the matrix products of one update, from rows and columns; None without any.
    Such a rule needs the whole matrix: at ZeRO 1 and 2 its momentum is gathered for the update."""

    @property
    def state_bytes(self) -> int:
        """Return the bytes per weight of the states, without the float32 master weight."""
        return FP32 * len(self.states)

    @property
    def update_bytes(self) -> int:
        """Return the bytes of memory traffic per weight of one update: gradient, master weight and
        states are read; master weight, states and a 16-bit weight are written."""
        return FP32 * (2 + len(self.states)) + FP32 * (1 + len(self.states)) + 2


@dataclass(frozen=True)
class OptimizerSpec:
    """One optimizer: how it is built, what it keeps, where it runs, what it costs."""

    name: str
    builder: Builder | str
    """A function, or its place as "module:function", which is imported when it is called."""
    rule: UpdateRule
    """Update of every parameter that `matrix_rule` does not cover."""
    matrix_rule: UpdateRule | None = None
    """Update of the matrices of repeated blocks, routers excluded. Default: `rule`."""
    zero_stages: tuple[int, ...] = (0, 1, 2, 3)
    """ZeRO stages at which it runs."""
    zero_reason: str = ""
    """Message: why it does not run at the other stages."""
    supports_offload: bool = True
    """True if its states may be kept, and updated, in host memory."""
    offload_reason: str = ""
    """Message: why they may not."""
    mup_matrix_lr: Callable[[float], float] = lambda width_multiple: 1 / width_multiple
    """Learning-rate multiplier of block matrices under muP, from the width over the base width."""

    def build(self, groups: list[dict[str, Any]], settings: OptimizerSettings) -> HookedOptimizer:
        """Build the optimizer of these parameter groups."""
        builder = self.builder
        if isinstance(builder, str):
            module, _, function = builder.partition(":")
            builder = getattr(import_module(module), function)
        return builder(groups, settings)

    def rule_of(self, *, block_matrix: bool) -> UpdateRule:
        """Return the update rule of block matrices, or of all other parameters."""
        return (self.matrix_rule if block_matrix else None) or self.rule

    def state_bytes(self, block_weights: float, other_weights: float) -> float:
        """Return the bytes of the states of that many weights in block matrices and elsewhere."""
        matrices, others = self.rule_of(block_matrix=True), self.rule
        return matrices.state_bytes * block_weights + others.state_bytes * other_weights

    def update_bytes(self, block_weights: float, other_weights: float) -> float:
        """Return the bytes of memory traffic of one update."""
        matrices, others = self.rule_of(block_matrix=True), self.rule
        return matrices.update_bytes * block_weights + others.update_bytes * other_weights

    def update_flops(
        self, block_matrices: Iterable[tuple[int, int, int]], other_weights: float
    ) -> float:
        """Return the FLOPs of one update.

        Args:
            block_matrices: how many there are of each shape: (count, rows, columns).
            other_weights: number of all other weights.
        """
        rule, flops = self.rule_of(block_matrix=True), self.rule.flops_per_weight * other_weights
        for count, rows, columns in block_matrices:
            products = rule.matrix_flops(rows, columns) if rule.matrix_flops else 0.0
            flops += count * (rule.flops_per_weight * rows * columns + products)
        return flops

    @property
    def gathers_matrices(self) -> bool:
        """Return whether an update at ZeRO 1 and 2 gathers the whole block matrices in float32."""
        return self.rule_of(block_matrix=True).matrix_flops is not None


def newton_schulz_flops(rows: int, columns: int) -> float:
    """Return the FLOPs of five Newton-Schulz iterations on a matrix: per iteration two products
    with it and the square of the smaller Gram matrix."""
    short, long = sorted((rows, columns))
    return 5 * (4.0 * short * short * long + 2.0 * short**3)


_ADAM = UpdateRule(states=("exp_avg", "exp_avg_sq"), flops_per_weight=15)

OPTIMIZERS: dict[str, OptimizerSpec] = {
    spec.name: spec
    for spec in (
        OptimizerSpec("adamw", "stages.training.optim.hooked_optimizer:build_adamw", _ADAM),
        OptimizerSpec(
            "lion",
            "stages.training.optim.lion:build_lion",
            UpdateRule(states=("exp_avg",), flops_per_weight=9),
        ),
        OptimizerSpec(
            "muon",
            "stages.training.optim.muon:build_muon",
            _ADAM,
            UpdateRule(("momentum",), flops_per_weight=10, matrix_flops=newton_schulz_flops),
            zero_stages=(0, 1, 2),
            zero_reason="Muon needs whole matrices, which ZeRO 3 cuts up",
            supports_offload=False,
            offload_reason="Muon is not supported with optimizer offload: Newton-Schulz iterations "
            "on a CPU are too slow",
            mup_matrix_lr=lambda width_multiple: 1 / math.sqrt(width_multiple),
        ),
    )
}


def register_optimizer(spec: OptimizerSpec) -> None:
    """Add an optimizer.

    Raises:
        ValueError: the name is taken.
    """
    if OPTIMIZERS.setdefault(spec.name, spec) is not spec:
        raise ValueError(f"two optimizers are called {spec.name!r}")


def find_optimizer(name: str) -> OptimizerSpec:
    """Return the optimizer of that name, of this package or of a plugin.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in OPTIMIZERS:
        load_plugins()
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; known are {', '.join(sorted(OPTIMIZERS))}")
    return OPTIMIZERS[name]
