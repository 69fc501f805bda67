"""What training a language model costs, before any process starts: arithmetic, traffic, time.

    layout = Layout.of(train, world, activation_checkpointing=True)
    work = arithmetic(config, layout, samples)
    sent = traffic(config, layout)
    made = forecast(config, layout, work, sent, DEVICES["h100"])

Formulas of the papers, bent to what our engine does (`stages.training.engine`); what memory it
takes is in `stages.training.planning.memory_model`. Imports no torch: `headwater plan` reads this module.

Symbols: n devices, e of them hold one set of experts, b bytes of a number, P weights, N positions
of a micro-batch, C width, k experts a token is sent to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from stages.training.planning.device_specs import LINK

if TYPE_CHECKING:
    from stages.models.language_model_config import LanguageConfig
    from stages.training.planning.device_specs import Device
    from stages.training.training_params import TrainSection

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Layout:
    """How a step falls on devices."""

    world: int
    zero: int
    """The ZeRO stage that is run."""
    dtype: str
    micro: int
    """Samples of one pass on one device."""
    passes: int
    """Forward and backward passes of a step on one device."""
    activation_checkpointing: bool = False
    expert_parallel_size: int = 1
    """Devices over which one set of experts is spread."""
    masked: bool = False
    """Whether attention is given a mask of documents."""
    gpu: bool = True
    offload: bool = False
    """Whether masters and moments are in the memory of the host, and updated there."""

    @classmethod
    def of(
        cls,
        train: TrainSection,
        world: int,
        *,
        activation_checkpointing: bool = False,
        masked: bool = False,
        gpu: bool = True,
    ) -> Layout:
        """The layout of a pipeline file's `train` on so many devices."""
        micro = min(train.rank_micro_batch_size(world), max(1, train.rank_batch_size(world)))
        passes = max(1, train.rank_batch_size(world) // micro)
        return cls(
            world,
            train.effective_zero_stage(world),
            train.dtype,
            micro,
            passes,
            activation_checkpointing,
            train.expert_parallel_size,
            masked,
            gpu,
            train.offload_optimizer != "none",
        )

    @property
    def bytes(self) -> int:
        """Of a weight, an activation or a gradient."""
        return BYTES[self.dtype]

    @property
    def copies(self) -> int:
        """Devices that hold the same experts."""
        return self.world // self.expert_parallel_size


def expert_parameters(config: LanguageConfig) -> int:
    """Weights of all experts; routers are none of them."""
    experts = getattr(config, "experts", None)
    if experts is None:
        return 0
    feed_forward: int = config.feed_forward_parameters  # type: ignore[union-attr]
    return int(switch_layers(config) * experts.num_experts * feed_forward)


def switch_layers(config: LanguageConfig) -> int:
    """Blocks with experts."""
    return int(getattr(config, "switch_layers", 0))


def choices(config: LanguageConfig) -> int:
    """Experts that a token is sent to; 0 where there are none."""
    experts = getattr(config, "experts", None)
    return int(experts.top_k) if experts else 0


# --- arithmetic --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arithmetic:
    """The work of a whole training."""

    tokens: float
    flops: float
    """Of the model: 6 per weight that a token passes, and attention over the full context. What
    an MFU counts (Chowdhery et al. 2022, appendix B)."""
    hardware_flops: float
    """What devices compute: the same, and with recomputation each block's forward pass again."""


def arithmetic(config: LanguageConfig, layout: Layout, samples: float) -> Arithmetic:
    """Tokens and FLOPs of a training on so many samples."""
    tokens = float(samples) * config.context_length
    each = float(config.flops_per_token)
    again = recomputed_flops_per_token(config) if layout.activation_checkpointing else 0.0
    return Arithmetic(tokens, tokens * each, tokens * (each + again))


def recomputed_flops_per_token(config: LanguageConfig) -> float:
    """One more forward pass through the blocks: a third of their part of `flops_per_token`. The
    head is not recomputed, as in Narayanan et al. 2021, equation 3."""
    head = 6.0 * config.vocab_size * config.hidden_size
    return (config.flops_per_token - head) / 3


# --- traffic -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traffic:
    """Bytes that one device sends in one step (it receives as many)."""

    reduced: float
    """Gradients."""
    gathered: float
    """Weights: after the update at ZeRO 1 and 2, before each use at ZeRO 3."""
    exchanged: float
    """Of samples: tokens on their way to experts and back; features, which a CLIP's loss compares
    over all devices."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.reduced + self.gathered + self.exchanged


def traffic(config: LanguageConfig, layout: Layout) -> Traffic:
    """What one device sends in a step: a ring's (n - 1) / n of what is reduced or gathered.

    Rajbhandari et al. 2020 (arXiv 1910.02054), section 7, but that DeepSpeed at stages 1 and 2
    all-reduces gradients whose owners alone need them (2 P instead of P): it scatters only from
    stage 3 on. Stages 2 and 3 keep no whole gradients, so they reduce after every pass.
    """
    spread = expert_parameters(config)
    dense = config.parameters - spread
    rings = ((dense, layout.world), (spread / layout.expert_parallel_size, layout.copies))
    ring = sum(numbers * (n - 1) / n for numbers, n in rings) * layout.bytes
    reduced, gathered = of_weights(ring, layout)
    return Traffic(reduced, gathered, exchanged(config, layout) * layout.passes)


def of_weights(ring: float, layout: Layout, *, forwards: int = 1) -> tuple[float, float]:
    """Bytes of gradients, and of weights, that one device sends in a step, where once around the
    ring is `ring`, and each pass goes forward so many times before it goes backward. DeepSpeed
    foresees a backward pass after each forward one, and at ZeRO 3 fetches for both (measured)."""
    passes = layout.passes if layout.zero >= 2 else 1
    reduced = ring * passes * (1 if layout.zero == 3 else 2)
    gathered = ring * {0: 0, 1: 1, 2: 1, 3: 2 * forwards * layout.passes}[layout.zero]
    return reduced, gathered


def exchanged(config: LanguageConfig, layout: Layout) -> float:
    """Bytes of tokens that one device sends to experts in one pass: there and back, forward and
    backward; recomputing goes there and back once more. Of the tokens 1 / e stay."""
    away = (layout.expert_parallel_size - 1) / layout.expert_parallel_size
    ways = 6 if layout.activation_checkpointing else 4
    token = config.hidden_size * layout.bytes * choices(config)
    return ways * switch_layers(config) * token * layout.micro * config.context_length * away


# --- time --------------------------------------------------------------------------------------


class Model(Protocol):
    """What time depends on."""

    @property
    def parameters(self) -> int:
        """All weights."""

    @property
    def hidden_size(self) -> int:
        """Of its matrices: how well a device does."""


@dataclass(frozen=True)
class Forecast:
    """What to expect of a device; within a third, if the network is not the bottleneck."""

    step_seconds: float
    seconds: float
    mfu: float
    """Model FLOPs over what the devices could do in that time."""


def forecast(
    config: Model,
    layout: Layout,
    work: Arithmetic,
    sent: Traffic,
    device: Device,
    *,
    steps: int,
    per_node: int = 8,
    cores: float = 1,
) -> Forecast:
    """Time and MFU: arithmetic at the device's efficiency for that width, then the traffic that
    nothing hides, then the optimizer.

    Our engine reduces gradients when the backward pass is over, so nothing hides that; weights of
    ZeRO 3 are fetched ahead, so they take time only as far as they take longer than arithmetic.

    Args:
        cores: processors of a worker; of GPUs each has one.
    """
    peak = device.peak[layout.dtype] * cores
    computing = work.hardware_flops / steps / layout.world
    computing /= peak * device.efficiency(config.hidden_size)
    gathering = _seconds(sent.gathered, layout.world, device, per_node)
    if layout.zero == 3:
        gathering = max(0.0, gathering - computing)
    waiting = _seconds(sent.reduced, layout.world, device, per_node) + gathering
    waiting += _exchange_seconds(sent.exchanged, layout, device, per_node)
    each = computing + waiting + _update_seconds(config, layout, device)
    mfu = work.flops / steps / layout.world / (each * peak)
    return Forecast(each, each * steps, mfu)


def _seconds(sent: float, world: int, device: Device, per_node: int) -> float:
    """A ring's time. Over several nodes each node's adapters carry it together, once."""
    rate = device.within
    if world > per_node:
        rate = min(rate, per_node * device.between)
    return sent / (LINK * rate)


def _exchange_seconds(sent: float, layout: Layout, device: Device, per_node: int) -> float:
    """An all-to-all's time: each device's own adapter carries what leaves the node. Where experts
    are not spread, it is features that all devices get, around a ring."""
    spread = layout.expert_parallel_size
    if spread == 1:
        return _seconds(sent, layout.world, device, per_node)
    inside = min(1.0, (per_node - 1) / (spread - 1))
    return sent / LINK * (inside / device.within + (1 - inside) / device.between)


UPDATE = 30
"""Bytes that AdamW moves a weight: gradient, master and two moments in, all but the first out."""
HOST = 25e9
"""Bytes a second of a host's memory, and of the bus to it, that are one device's: an eighth of two
sockets of eight channels, and a PCIe 4 of sixteen lanes."""


def _update_seconds(config: Model, layout: Layout, device: Device) -> float:
    held = config.parameters if layout.zero == 0 else config.parameters / layout.world
    if layout.offload:  # gradients go there, weights come back
        return (UPDATE + 2 * layout.bytes) * held / HOST
    return UPDATE * held / device.bandwidth
