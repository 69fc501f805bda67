"""The registry of optimizers: entries agree with what they build, and plugins add entries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import outside_package
import pytest
import torch
from outside_optimizer import SGD_PLUGIN
from pydantic import ValidationError
from torch import nn

from pipeline.plugins import load_plugins
from stages.training.optim import optimizer_registry as registry
from stages.training.optim.hooked_optimizer import HookedOptimizer
from stages.training.optim.optimizer_registry import OptimizerSpec, UpdateRule, find_optimizer
from stages.training.optim.param_groups import build_optimizer
from stages.training.ranks.rank import Rank
from stages.training.trainable import Trainable
from stages.training.training_params import TrainSection
from stages.training.zero_state import build_partitioned_state

NAMES = ("adamw", "lion", "muon")


class Blocks(nn.Module):
    """Two block matrices of 20 numbers each, and 15 numbers elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.ones(2, 5))
        self.blocks = nn.ModuleList(nn.Linear(5, 4, bias=False) for _ in range(2))
        self.gain = nn.Parameter(torch.ones(5))


def built(name: str, module: nn.Module) -> HookedOptimizer:
    """Build an optimizer with its states, and make one update."""
    settings, parameters = TrainSection(optimizer=name), dict(module.named_parameters())
    optimizer = build_optimizer(Trainable(module), parameters, settings, settings.lr)
    build_partitioned_state(0, None, optimizer, parameters, Rank())
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", NAMES)
def test_planned_bytes_of_states_are_those_of_an_optimizer(name: str) -> None:
    module = Blocks()
    optimizer = built(name, module)
    held = sum(
        tensor.nbytes
        for state in optimizer.state.values()
        for kind, tensor in state.items()
        if kind != "step"
    )
    assert held == find_optimizer(name).state_bytes(block_weights=40, other_weights=15)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_updated_once(name: str) -> None:
    module = Blocks()
    before = {n: p.clone() for n, p in module.named_parameters()}
    optimizer = built(name, module)
    assert all(not torch.equal(p, before[n]) for n, p in module.named_parameters())
    assert {float(state["step"]) for state in optimizer.state.values()} == {1.0}


def test_costs_of_an_update() -> None:
    adamw, muon = find_optimizer("adamw"), find_optimizer("muon")
    assert adamw.update_bytes(40, 15) == 30 * 55
    assert muon.update_bytes(40, 15) == 22 * 40 + 30 * 15
    assert adamw.update_flops([(2, 4, 5)], 15) == 15 * 55
    products = 5 * (2 * 4 * 5 * 4 + 2 * 4 * 4 * 4 + 2 * 4 * 4 * 5)  # X X', (X X')^2, (...) X
    assert muon.update_flops([(2, 4, 5)], 15) == 2 * (10 * 20 + products) + 15 * 15
    assert registry.newton_schulz_flops(5, 4) == registry.newton_schulz_flops(4, 5) == products
    assert muon.gathers_matrices and not adamw.gathers_matrices


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValidationError, match="'sgd'; known are adamw, lion, muon"):
        TrainSection(optimizer="sgd")


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'lion'"):
        registry.register_optimizer(OptimizerSpec("lion", "a:b", UpdateRule((), 1)))


def test_a_plan_reads_it_without_torch() -> None:
    code = "import sys, stages.training.training_params; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_package_outside_the_tree_adds_an_optimizer_by_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside_package.install(tmp_path, monkeypatch, "sgd_plugin", SGD_PLUGIN)
    monkeypatch.setattr(registry, "OPTIMIZERS", dict(registry.OPTIMIZERS))
    load_plugins.cache_clear()
    try:
        module = Blocks()
        built("sgd", module)
        assert torch.allclose(module.gain, torch.full((5,), 1 - TrainSection().lr))
        assert find_optimizer("sgd").state_bytes(40, 15) == 4 * 55
    finally:
        load_plugins.cache_clear()
