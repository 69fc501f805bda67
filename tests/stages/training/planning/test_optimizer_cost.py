"""Planned against measured memory of optimizers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.language_model_config import ExpertsConfig, LanguageModelConfig
from stages.models.llama.configuration_llama import LlamaConfig
from stages.models.registry import build_model
from stages.training.objective import Trainable
from stages.training.optim.optimizer_registry import find_optimizer, newton_schulz_flops
from stages.training.optim.param_groups import block_matrices, build_optimizer
from stages.training.planning.cost_model import forecast
from stages.training.planning.device_layout import Layout
from stages.training.planning.device_specs import DEVICES
from stages.training.planning.language_model_cost import LanguageModelCost
from stages.training.planning.optimizer_cost import ADAMW, optimizer_cost
from stages.training.ranks.rank import Rank
from stages.training.training_params import TrainSection
from stages.training.zero_state import build_partitioned_state

GPT = GPTConfig(97, 32, 3, 48, 4)
SWITCH = LlamaConfig(
    97, 32, 4, 48, 4, num_kv_heads=2, intermediate_size=64, head_size=16, qk_norm=True,
    experts=ExpertsConfig(num_experts=4, moe_every=2),
)  # fmt: skip
CONFIGS = {"gpt2": GPT, "switch": SWITCH, "llama": replace(SWITCH, experts=None)}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", ["adamw", "muon", "lion"])
def test_planned_memory_is_that_of_the_states(name: str, config: LanguageModelConfig) -> None:
    model, settings = build_model(config), TrainSection(optimizer=name)
    parameters = dict(model.named_parameters())
    optimizer = build_optimizer(Trainable(model), parameters, settings, settings.lr)
    build_partitioned_state(0, None, optimizer, parameters, Rank())
    measured = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for key, value in state.items()
        if key != "step"
    )
    cost = optimizer_cost(find_optimizer(name), config.block_matrices(), config.parameters)
    layout = Layout(1, 0, "float32", 1, 1, gpu=False, optimizer=cost)
    planned = LanguageModelCost(config).memory(layout).optimizer
    assert measured > 0
    assert planned == pytest.approx(measured)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_matrices_are_those_of_muon(config: LanguageModelConfig) -> None:
    model = build_model(config)
    parameters = dict(model.named_parameters())
    shapes: dict[tuple[int, int], int] = {}
    for name in block_matrices(model):
        *experts, rows, columns = parameters[name].shape
        number = experts[0] if experts else 1
        shapes[rows, columns] = shapes.get((rows, columns), 0) + number
    planned: dict[tuple[int, int], int] = {}
    for number, rows, columns in config.block_matrices():
        if number:
            planned[rows, columns] = planned.get((rows, columns), 0) + number
    assert planned == shapes


def test_muon_is_priced_as_what_it_is() -> None:
    config = GPTConfig(50257, 1024, 24, 1024, 16)
    cost = LanguageModelCost(config)
    muon = optimizer_cost(find_optimizer("muon"), config.block_matrices(), config.parameters)
    layout = Layout(8, 1, "bfloat16", 4, 1)
    with_muon = replace(layout, optimizer=muon)
    block = sum(number * rows * columns for number, rows, columns in config.block_matrices())
    saved = cost.memory(layout).optimizer - cost.memory(with_muon).optimizer
    assert saved == pytest.approx(4 * block / 8)  # one momentum instead of two moments
    extra = cost.traffic(with_muon).gathered - cost.traffic(layout).gathered
    assert extra == pytest.approx(4 * block * 7 / 8)  # the momentum of whole matrices
    assert muon.update_flops > 24 * newton_schulz_flops(1024, 4096)
    device = DEVICES["h100"]
    work = cost.arithmetic(layout, 32)
    slow, fast = (
        forecast(cost, each, work, cost.traffic(each), device, steps=1)
        for each in (with_muon, layout)
    )
    assert slow.step_seconds > fast.step_seconds


def test_adamw_is_the_default() -> None:
    cost = optimizer_cost(find_optimizer("adamw"), GPT.block_matrices(), GPT.parameters)
    assert cost == ADAMW
