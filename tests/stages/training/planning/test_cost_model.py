"""Parameters, FLOPs, traffic and time against what papers published of their trainings."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest

from stages.models.gpt2.configuration_gpt2 import GPTConfig, gpt2_preset
from stages.models.language_model_config import ExpertsConfig
from stages.models.llama.configuration_llama import LlamaConfig
from stages.training.planning.cost_model import forecast
from stages.training.planning.device_layout import Layout
from stages.training.planning.device_specs import DEVICES
from stages.training.planning.language_model_cost import LanguageModelCost

A100 = DEVICES["a100-80gb"]
DAY = 86400.0


class Row(NamedTuple):
    """Of Narayanan et al. 2021 (arXiv 2104.04473), table 1."""

    billions: float
    heads: int
    width: int
    layers: int
    devices: int
    batch: int
    teraflops: float

    @property
    def config(self) -> GPTConfig:
        return GPTConfig(51200, 2048, self.layers, self.width, self.heads)


MEGATRON = [
    Row(1.7, 24, 2304, 24, 32, 512, 137),
    Row(3.6, 32, 3072, 30, 64, 512, 138),
    Row(7.5, 32, 4096, 36, 128, 512, 142),
    Row(18.4, 48, 6144, 40, 256, 1024, 135),
    Row(39.1, 64, 8192, 48, 512, 1536, 138),
    Row(76.1, 80, 10240, 60, 1024, 1792, 140),
    Row(145.6, 96, 12288, 80, 1536, 2304, 148),
    Row(310.1, 128, 16384, 96, 1920, 2160, 155),
    Row(529.6, 128, 20480, 105, 2520, 2520, 163),
    Row(1008.0, 160, 25600, 128, 3072, 3072, 163),
]


def training(
    config: GPTConfig | LlamaConfig, tokens: float, world: int, batch: int, layout: Layout
) -> tuple[float, float, float]:
    """FLOPs of the model and of the hardware, and device hours on A100s."""
    steps = tokens / (batch * config.context_length)
    cost = LanguageModelCost(config)
    work, sent = cost.arithmetic(layout, steps * batch), cost.traffic(layout)
    made = forecast(cost, layout, work, sent, A100, steps=steps)  # type: ignore[arg-type]
    return work.flops, work.hardware_flops, made.seconds * world / 3600


@pytest.mark.parametrize("row", MEGATRON, ids=lambda row: f"{row.billions}B")
def test_megatrons_models(row: Row) -> None:
    config = row.config
    assert config.parameters / 1e9 == pytest.approx(row.billions, rel=0.03)
    layout = Layout(row.devices, 1, "bfloat16", 1, 1, activation_checkpointing=True)
    work = LanguageModelCost(config).arithmetic(layout, row.batch)
    B, s, h, n, V = row.batch, 2048, row.width, row.layers, 51200
    theirs = 96 * B * s * n * h**2 * (1 + s / (6 * h) + V / (16 * n * h))  # equation 3
    assert work.hardware_flops == pytest.approx(theirs, rel=0.001)
    # Of the peak, their whole system reaches up to a fifth less or more than one device of ours.
    assert A100.efficiency(h) == pytest.approx(row.teraflops / 312, rel=0.21)


@pytest.mark.parametrize(
    ("config", "tokens", "devices", "teraflops", "days"),
    [
        (gpt2_preset("gpt3-175b"), 300e9, 1024, 140, 34),
        (MEGATRON[-1].config, 450e9, 3072, 163, 84),
    ],
    ids=["gpt3-175b", "1T"],
)
def test_days_of_the_largest(
    config: GPTConfig, tokens: float, devices: int, teraflops: float, days: float
) -> None:
    """The same, section 5.1: at the speed that they measured."""
    layout = Layout(devices, 1, "bfloat16", 1, 1, activation_checkpointing=True)
    work = LanguageModelCost(config).arithmetic(layout, 1)
    flops = work.hardware_flops / work.tokens * tokens
    assert flops / (devices * teraflops * 1e12) / DAY == pytest.approx(days, rel=0.1)


@pytest.mark.parametrize(
    ("name", "parameters", "flops"),
    [
        ("gpt3-125m", 125e6, 2.25e20),
        ("gpt3-350m", 356e6, 6.41e20),
        ("gpt3-760m", 760e6, 1.37e21),
        ("gpt3-1.3b", 1.32e9, 2.38e21),
        ("gpt3-2.7b", 2.65e9, 4.77e21),
        ("gpt3-6.7b", 6.66e9, 1.20e22),
        ("gpt3-13b", 12.85e9, 2.31e22),
        ("gpt3-175b", 174.6e9, 3.14e23),
    ],
)
def test_gpt3(name: str, parameters: float, flops: float) -> None:
    """Brown et al. 2020, table D.1, which leaves attention out of the FLOPs: so does this."""
    config = gpt2_preset(name)
    assert config.parameters == pytest.approx(parameters, rel=0.01)
    attention = 12 * config.num_layers * config.hidden_size * config.context_length
    matrices = config.flops_per_token - attention
    assert matrices * 300e9 == pytest.approx(flops, rel=0.03)


LLAMA = {
    "llama-2-7b": (
        LlamaConfig(32000, 4096, 32, 4096, 32, 32, 11008, 128, tie_embeddings=False),
        6.738e9,
    ),
    "llama-2-13b": (
        LlamaConfig(32000, 4096, 40, 5120, 40, 40, 13824, 128, tie_embeddings=False),
        13.016e9,
    ),
    "llama-2-70b": (
        LlamaConfig(32000, 4096, 80, 8192, 64, 8, 28672, 128, tie_embeddings=False),
        68.977e9,
    ),
    "llama-3-8b": (
        LlamaConfig(128256, 8192, 32, 4096, 32, 8, 14336, 128, tie_embeddings=False),
        8.030e9,
    ),
    "olmo-7b": (
        LlamaConfig(50304, 2048, 32, 4096, 32, 32, 11008, 128, tie_embeddings=False),
        6.888e9,
    ),
}


@pytest.mark.parametrize("name", LLAMA)
def test_modern_shapes(name: str) -> None:
    """Touvron et al. 2023, Dubey et al. 2024, Groeneveld et al. 2024, whose norms have no gains."""
    config, parameters = LLAMA[name]
    assert config.parameters == pytest.approx(parameters, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "hours"),
    [("llama-2-7b", 184_320), ("llama-2-13b", 368_640), ("llama-2-70b", 1_720_320)],
)
def test_hours_to_expect(name: str, hours: float) -> None:
    """Touvron et al. 2023, table 2: hours of A100-80GB for 2e12 tokens in batches of 4e6. Whether
    they recomputed is not told: between the two expectations, a quarter either way."""
    config, _ = LLAMA[name]
    batch, world = 1024, 1024
    plain = Layout(world, 3, "bfloat16", 1, 1)
    least = training(config, 2e12, world, batch, plain)[2]
    most = training(config, 2e12, world, batch, replace(plain, activation_checkpointing=True))[2]
    assert 0.75 * least < hours < 1.25 * most
    assert most < 1.4 * least


def test_switch_transformers() -> None:
    """Fedus et al. 2021, table 9. Ours is a decoder: as many blocks as their encoder and decoder,
    without attention from one to the other (Base: 28 M weights of 7.4 G); where their experts have
    two matrices (C), three of two thirds of the hidden width are as many weights."""
    base = LlamaConfig(
        32128, 512, 24, 768, 12, 12, 2048, 64, experts=ExpertsConfig(num_experts=128, moe_every=2)
    )
    assert base.parameters == pytest.approx(7.4e9, rel=0.03)
    c = LlamaConfig(
        32128, 512, 30, 2080, 32, 32, 4096, 64, experts=ExpertsConfig(num_experts=2048, moe_every=1)
    )
    assert c.parameters == pytest.approx(1571e9, rel=0.01)
    dense = replace(base, experts=None)
    assert base.active_parameters == dense.parameters + 12 * 768 * 128  # and the routers
    assert base.flops_per_token == pytest.approx(dense.flops_per_token, rel=0.05)


GPT = GPTConfig(1000, 128, num_layers=4, hidden_size=64, num_heads=4)


@pytest.mark.parametrize(("zero", "times"), [(0, 2), (1, 3), (2, 3), (3, 3)])
def test_traffic_of_each_stage(zero: int, times: int) -> None:
    """Rajbhandari et al. 2020, section 7, in units of the weights: reduce and gather once each; at
    stages 1 and 2 DeepSpeed sends reduced gradients to those too that do not need them."""
    sent = LanguageModelCost(GPT).traffic(Layout(64, zero, "bfloat16", 1, 1))
    assert sent.total == pytest.approx(times * 2 * GPT.parameters * 63 / 64)
    assert sent.exchanged == 0
    assert LanguageModelCost(GPT).traffic(Layout(1, 1, "bfloat16", 1, 1)).total == 0


def test_sharded_gradients_are_reduced_after_every_pass() -> None:
    reduced = [
        LanguageModelCost(GPT).traffic(Layout(8, zero, "float32", 1, 5)).reduced
        for zero in range(4)
    ]
    once = 2 * 4 * GPT.parameters * 7 / 8
    assert reduced == pytest.approx([once, once, 5 * once, 5 * once / 2])


def test_tokens_travel_to_experts_and_back() -> None:
    config = LlamaConfig(
        1000, 128, 4, 64, 4, 4, 128, 16, experts=ExpertsConfig(num_experts=8, moe_every=2, top_k=1)
    )
    layout = Layout(8, 1, "bfloat16", 2, 3, expert_parallel_size=4)
    sent = LanguageModelCost(config).traffic(layout)
    # 4 ways x 2 layers x 256 tokens x 64 numbers x 2 bytes x 3 passes, three of four away
    assert sent.exchanged == 4 * 2 * 256 * 64 * 2 * 3 * 3 / 4
    again = LanguageModelCost(config).traffic(replace(layout, activation_checkpointing=True))
    assert again.exchanged == 1.5 * sent.exchanged
    apart = LanguageModelCost(config).traffic(replace(layout, expert_parallel_size=1))
    assert apart.exchanged == 0
    assert apart.reduced > sent.reduced


def test_a_slow_network_and_a_narrow_model_take_their_share() -> None:
    def mfu(config: GPTConfig, layout: Layout, **options: int) -> float:
        batch = layout.world * layout.micro_batch_size * layout.gradient_accumulation_steps
        work = LanguageModelCost(config).arithmetic(layout, 10 * batch)
        sent = LanguageModelCost(config).traffic(layout)
        return forecast(
            LanguageModelCost(config), layout, work, sent, A100, steps=10, **options
        ).mfu

    large, small = gpt2_preset("gpt3-6.7b"), gpt2_preset("gpt3-125m")
    layout = Layout(16, 1, "bfloat16", 4, 4)
    assert mfu(large, layout) > 1.3 * mfu(small, layout)
    assert mfu(large, layout, devices_per_node=16) > mfu(large, layout, devices_per_node=1)
    hidden = replace(layout, zero_stage=3, gradient_accumulation_steps=1, micro_batch_size=16)
    assert mfu(large, hidden) > mfu(large, replace(hidden, zero_stage=2))
    for device in DEVICES.values():
        for dtype in device.peak:
            sent = LanguageModelCost(large).traffic(replace(layout, dtype=dtype))
            work = LanguageModelCost(large).arithmetic(layout, 256)
            made = forecast(
                LanguageModelCost(large), replace(layout, dtype=dtype), work, sent, device, steps=1
            )
            assert 0 < made.mfu < device.max_efficiency
