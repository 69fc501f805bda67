"""Memory by kind: the papers' formulas, and what autograd really keeps of each block."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peak_allocation import peak
from saved_tensors import kept

from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.gpt2.modeling_gpt2 import GPT
from stages.models.initialization import initial_model
from stages.models.language_model_config import ExpertsConfig, LanguageModelConfig, MuP
from stages.models.llama.configuration_llama import LlamaConfig
from stages.models.llama.modeling_llama import Llama
from stages.models.model_io import save_language_model
from stages.models.registry import build_model
from stages.training import engine, expert_parallel
from stages.training.planning.device_layout import Layout
from stages.training.planning.language_model_cost import LanguageModelCost
from stages.training.planning.memory_model import (
    BUCKET,
    CPU_BUCKET,
    activations,
    host_memory,
    language_model_memory,
)
from stages.training.training_params import TrainSection

GPT_7_5B = GPTConfig(51200, 2048, num_layers=36, hidden_size=4096, num_heads=32)
SMALL = GPTConfig(vocab_size=97, context_length=24, num_layers=2, hidden_size=32, num_heads=4)
MODERN = LlamaConfig(
    97,
    24,
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=4,
    intermediate_size=48,
    head_size=8,
)
SWITCH = replace(MODERN, experts=ExpertsConfig(num_experts=4, moe_every=1, capacity_factor=None))


@pytest.mark.parametrize(
    ("zero", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)], ids=str
)
def test_states_of_7_5_billion_weights_on_64_devices(zero: int, gigabytes: float) -> None:
    """Rajbhandari et al. 2020, figure 1: 16 bits, Adam, 64 devices, exactly 7.5e9 weights; ours
    adds gradients up in float32."""
    held = language_model_memory(GPT_7_5B, Layout(64, zero, "bfloat16", 1, 1))
    scale = 7.5e9 / GPT_7_5B.parameters
    # At stage 0 the engine keeps no float32 masters; 16 bits run at stage 1 or above.
    masters = 4 * 7.5 if zero == 0 else 0.0
    states = held.states - held.gradients / 2
    assert states * scale / 1e9 + masters == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_offloaded_is_on_the_host(dtype: str) -> None:
    for zero in (1, 2, 3):
        layout = Layout(16, zero, dtype, 1, 1)
        away = replace(layout, offload=True)
        here, there = language_model_memory(GPT_7_5B, layout), language_model_memory(GPT_7_5B, away)
        part = GPT_7_5B.parameters / 16
        assert here.optimizer - there.optimizer == 12 * part
        assert here.peak - there.peak >= 12 * part or there.peak == there.initialization
        parameters = GPT_7_5B.parameters
        assert host_memory(parameters, away, 8) >= 8 * (4 * parameters + 16 * part)
        assert host_memory(parameters, replace(away, world=2), 2) > host_memory(
            parameters, replace(layout, world=2), 2
        )


def test_every_process_of_a_node_begins_with_all_weights() -> None:
    layout = Layout(16, 3, "bfloat16", 1, 1)
    for per_node in (4, 8):
        # Masters, and the rounded copies that are made of them.
        assert (
            host_memory(GPT_7_5B.parameters, layout, per_node) == per_node * 6 * GPT_7_5B.parameters
        )
    assert (
        host_memory(GPT_7_5B.parameters, replace(layout, world=2), 8) > 2 * 4 * GPT_7_5B.parameters
    )


DEEP = replace(MODERN, num_layers=24, num_kv_heads=2, qk_norm=True)
DEEP_SWITCH = replace(DEEP, experts=ExpertsConfig(num_experts=4))


@pytest.mark.parametrize(
    ("config", "given", "least"),
    [
        (replace(SMALL, num_layers=24), None, 0.99),
        (
            replace(SMALL, num_layers=24, mup=MuP(base_width=16)),
            replace(SMALL, num_layers=24),
            0.99,
        ),
        (DEEP, None, 0.99),
        (replace(DEEP, tie_embeddings=False), None, 0.99),
        (DEEP_SWITCH, None, 0.97),
        (DEEP_SWITCH, DEEP, 0.6),
    ],
    ids=["gpt2", "gpt2 with muP", "qwen3", "untied", "experts", "experts of a dense model"],
)
def test_a_model_to_start_from_is_held_beside_the_own(
    config: LanguageModelConfig, given: LanguageModelConfig | None, least: float, tmp_path: Path
) -> None:
    """What the code that reads it allocates; a dense model that gets experts takes less."""
    save_language_model(build_model(given or config), tmp_path)
    held = peak(lambda: initial_model(config, tmp_path), tmp_path)
    beside = held - 4 * config.parameters
    assert least < beside / LanguageModelCost(config).load_overhead < 1.02


def test_where_all_start_from_a_model_each_process_holds_a_second_one() -> None:
    layout, P = Layout(16, 3, "bfloat16", 1, 1), GPT_7_5B.parameters
    assert host_memory(P, layout, 8, LanguageModelCost(GPT_7_5B).load_overhead) == 8 * 8 * P
    assert host_memory(P, layout, 8, 0.1) == 8 * 6 * P  # the rounded copies come later


@pytest.mark.parametrize(
    ("fields", "alone", "together"),
    [
        ({"zero_stage": 0}, 0, 0),
        ({"zero_stage": 2}, 0, 2),
        ({"zero_stage": 0, "dtype": "bfloat16"}, 1, 1),
        ({"zero_stage": 3, "dtype": "float16"}, 3, 3),
        ({"zero_stage": 0, "offload_optimizer": "cpu"}, 1, 1),
    ],
)
def test_what_needs_masters_apart_runs_at_stage_1_at_least(
    fields: dict[str, object], alone: int, together: int
) -> None:
    train = TrainSection.model_validate(fields)
    layouts = [Layout.of(train, world) for world in (1, 2)]
    assert [layout.zero_stage for layout in layouts] == [alone, together]
    assert all(layout.offload is (train.offload_optimizer == "cpu") for layout in layouts)


@pytest.mark.parametrize(("gpu", "numbers"), [(True, BUCKET), (False, CPU_BUCKET)])
def test_the_bucket_is_the_one_that_the_engine_sets(gpu: bool, numbers: int) -> None:
    config = engine._deepspeed_config(TrainSection(), 2, False, gpu)["zero_optimization"]
    assert config["reduce_bucket_size"] == numbers


def test_experts_are_shared_by_those_who_hold_them_together() -> None:
    config = replace(SWITCH, experts=ExpertsConfig(num_experts=8, moe_every=1))
    spread = config.expert_parameters
    dense = config.parameters - spread
    held = language_model_memory(config, Layout(4, 1, "float32", 1, 1, expert_parallel_size=4))
    assert held.weights == held.gradients == 4 * (dense + spread / 4)
    assert held.optimizer == 12 * config.parameters / 4


def kept_by_blocks(model: GPT | Llama, document_mask: bool) -> int:
    """Bytes that autograd keeps of a forward pass through the blocks."""
    tokens = torch.randint(0, 97, (3, 24), generator=torch.Generator().manual_seed(0))
    segments = tokens.sort().values if document_mask else None
    return kept(model, lambda: model.hidden(tokens, segments_BT=segments))


@pytest.mark.parametrize(
    ("config", "close"),
    [
        (SMALL, 0.001),
        (MODERN, 0.001),
        (replace(MODERN, num_kv_heads=2), 0.001),
        (replace(MODERN, qk_norm=True), 0.001),
        (SWITCH, 0.01),
        (
            replace(
                SWITCH,
                experts=ExpertsConfig(num_experts=4, moe_every=1, top_k=2, capacity_factor=None),
            ),
            0.01,
        ),
    ],
    ids=["gpt", "llama", "grouped", "qwen3", "switch", "top-2"],
)
def test_a_block_keeps_what_its_operators_save(
    config: GPTConfig | LlamaConfig, close: float
) -> None:
    kind = GPT if isinstance(config, GPTConfig) else Llama
    deep = replace(config, num_layers=5)
    experts = isinstance(config, LlamaConfig) and config.experts is not None
    for document_mask in (False, True):
        many, few = (kept_by_blocks(kind(c), document_mask) for c in (deep, config))  # type: ignore[arg-type]
        measured = (many - few) / 3 / (3 * 24)
        assert config.block_activation_bytes(
            4, moe=experts, document_mask=document_mask, gpu=False
        ) == pytest.approx(measured, rel=close)


def test_recomputing_keeps_one_stream_a_block() -> None:
    config = GPTConfig(50257, 2048, num_layers=40, hidden_size=5120, num_heads=40)
    plain = Layout(64, 3, "bfloat16", 1, 4)
    whole, thrifty = (
        activations(config, replace(plain, activation_checkpointing=r)) for r in (False, True)
    )
    saved = (
        39
        * (config.block_activation_bytes(2, moe=False, document_mask=False, gpu=True) - 2 * 5120)
        * 2048
    )
    # The block that is made again meets its gradients, and no longer the head.
    assert whole - thrifty == pytest.approx(saved, rel=0.03)


def test_gradients_and_activations_meet_only_where_passes_follow_each_other() -> None:
    once, twice = (
        language_model_memory(SMALL, Layout(1, 0, "float32", 1, passes, gpu=False))
        for passes in (1, 2)
    )
    assert twice.peak - once.peak <= once.gradients
    large = replace(SMALL, num_layers=12, context_length=512)
    once, twice = (
        language_model_memory(large, Layout(1, 0, "float32", 4, passes, gpu=False))
        for passes in (1, 2)
    )
    assert twice.peak == once.peak + once.gradients


def test_modules_that_hold_shares_are_those_that_the_formula_divides() -> None:
    model = Llama(SWITCH)
    layers = [m for m in model.modules() if isinstance(m, expert_parallel.MoELayer)]
    held = sum(p.numel() for layer in layers for p in layer.experts.parameters())
    assert held == SWITCH.expert_parameters
