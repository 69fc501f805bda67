"""The costs of training a model, before any process starts: FLOPs, traffic, time.

    layout = Layout.of(train, world, activation_checkpointing=True)
    cost = LanguageModelCost(config)                 # or ClipCost: both are a CostModel
    work, sent = cost.arithmetic(layout, samples), cost.traffic(layout)
    expected = forecast(cost, layout, work, sent, DEVICES["h100"], steps=1000)

`CostModel` is the part of a model that `stages.training.planning.estimate` needs; memory is in
`stages.training.planning.memory_model`. The formulas are those of the papers, adapted to what the
engine does (`stages.training.engine`). Imports no torch: `headwater plan` reads this module.

Symbols: n devices, e of them hold one set of experts, b bytes of a number, P weights, N positions
of a micro-batch, C width, k experts per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from stages.training.planning.device_specs import LINK

if TYPE_CHECKING:
    from stages.models.language_model_config import Matrix
    from stages.training.planning.device_layout import Layout
    from stages.training.planning.device_specs import Device
    from stages.training.planning.memory_model import Memory


@dataclass(frozen=True)
class Arithmetic:
    """The FLOPs of a whole training."""

    tokens: float
    flops: float
    """FLOPs of the model: 6 per weight that a token passes, and attention over the full context.
    This is what an MFU counts (Chowdhery et al. 2022, appendix B)."""
    hardware_flops: float
    """FLOPs that devices compute: the same, and what they compute again."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that one device sends in one step; it receives as many."""

    reduced: float
    """Gradients."""
    gathered: float
    """Weights: after the update at ZeRO 1 and 2, before each use at ZeRO 3; with an optimizer that
    needs whole matrices also its momentum."""
    exchanged: float
    """Activations that other devices need: tokens to experts and back, features of a contrastive
    loss."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.reduced + self.gathered + self.exchanged


class CostModel(Protocol):
    """The costs of training one model."""

    @property
    def parameters(self) -> int:
        """All weights."""

    @property
    def matmul_width(self) -> int:
        """Typical width of the matrices, which decides the efficiency of a device."""

    @property
    def num_experts(self) -> int:
        """Experts per layer; 0 in a dense model."""

    @property
    def load_overhead(self) -> float:
        """Bytes that loading another model's weights takes next to the model's own."""

    @property
    def sample_unit(self) -> str:
        """Unit of the size of a training: `tokens` or `pairs`."""

    @property
    def exchange(self) -> str:
        """The activations that devices exchange, for a plan."""

    def block_matrices(self) -> Iterator[Matrix]:
        """Yield the weight matrices of repeated blocks."""

    def arithmetic(self, layout: Layout, samples: float) -> Arithmetic:
        """Return the FLOPs of a training on that many samples."""

    def traffic(self, layout: Layout) -> Traffic:
        """Return what one device sends in a step."""

    def memory(self, layout: Layout) -> Memory:
        """Return what one device holds."""

    def sizes(self, layout: Layout, samples: float) -> dict[str, float]:
        """Return the metrics of this kind of model, `sample_unit` among them."""

    def parts(self, layout: Layout, samples: float) -> Mapping[str, Mapping[str, float]]:
        """Return the parts of `parameters`, `flops` and `activations` by label."""


def weight_traffic(ring: float, layout: Layout, *, forwards: int = 1) -> tuple[float, float]:
    """Return the bytes of gradients and of weights that one device sends in a step.

    At ZeRO 3 DeepSpeed gathers weights for the backward pass of every forward pass, also when none
    follows (measured).

    Args:
        ring: bytes once around the ring.
        layout: how a step is divided among devices.
        forwards: forward passes before each backward pass.
    """
    passes = layout.gradient_accumulation_steps if layout.zero_stage >= 2 else 1
    reduced = ring * passes * (1 if layout.zero_stage == 3 else 2)
    times = {0: 0, 1: 1, 2: 1, 3: 2 * forwards * layout.gradient_accumulation_steps}
    gathered = ring * times[layout.zero_stage]
    if layout.zero_stage in (1, 2):
        share = (layout.world - 1) / layout.world
        gathered += 4 * layout.optimizer.gathered_weights * share
    return reduced, gathered


# --- time --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forecast:
    """Expected time of a training, within one third if the network is not the bottleneck."""

    step_seconds: float
    seconds: float
    mfu: float
    """Model FLOPs over what the devices could compute in that time."""


def forecast(
    cost: CostModel,
    layout: Layout,
    work: Arithmetic,
    sent: Traffic,
    device: Device,
    *,
    steps: int,
    devices_per_node: int = 8,
    cores: float = 1,
) -> Forecast:
    """Return time and MFU: arithmetic at the device's efficiency for the model's width, then the
    traffic that nothing hides, then the optimizer.

    The engine reduces gradients after the backward pass, so nothing hides that; weights of ZeRO 3
    are fetched ahead, so they take time only where they take longer than arithmetic.

    Args:
        cost: of the model.
        layout: how a step is divided among devices.
        work: FLOPs of the training.
        sent: traffic of a step.
        device: each worker's.
        steps: of the training.
        devices_per_node: devices that share the fast links.
        cores: CPU cores per worker; 1 with a GPU.
    """
    peak = device.peak[layout.dtype] * cores
    computing = work.hardware_flops / steps / layout.world
    computing /= peak * device.efficiency(cost.matmul_width)
    gathering = _ring_seconds(sent.gathered, layout.world, device, devices_per_node)
    if layout.zero_stage == 3:
        gathering = max(0.0, gathering - computing)
    waiting = _ring_seconds(sent.reduced, layout.world, device, devices_per_node) + gathering
    waiting += _exchange_seconds(sent.exchanged, layout, device, devices_per_node)
    step = computing + waiting + _update_seconds(cost, layout, device, cores)
    mfu = work.flops / steps / layout.world / (step * peak)
    return Forecast(step, step * steps, mfu)


def _ring_seconds(sent: float, world: int, device: Device, devices_per_node: int) -> float:
    """Return a ring's time. Over several nodes each node's adapters carry it together, once."""
    rate = device.intra_node_bandwidth
    if world > devices_per_node:
        rate = min(rate, devices_per_node * device.inter_node_bandwidth)
    return sent / (LINK * rate)


def _exchange_seconds(sent: float, layout: Layout, device: Device, devices_per_node: int) -> float:
    """Return an all-to-all's time: each device's own adapter carries what leaves the node. Without
    expert parallelism, features go to all devices around a ring."""
    size = layout.expert_parallel_size
    if size == 1:
        return _ring_seconds(sent, layout.world, device, devices_per_node)
    inside = min(1.0, (devices_per_node - 1) / (size - 1))
    seconds = inside / device.intra_node_bandwidth + (1 - inside) / device.inter_node_bandwidth
    return sent / LINK * seconds


HOST_BANDWIDTH = 25e9
"""Bytes per second of host memory, and of the bus to it, per device: an eighth of two sockets of
eight channels, and a PCIe 4 of sixteen lanes."""


def _update_seconds(cost: CostModel, layout: Layout, device: Device, cores: float) -> float:
    """Return the time of an update: memory traffic, and the matrix products that some optimizers
    make, on all devices alike at ZeRO 0 and divided among them from ZeRO 1 on."""
    shards = layout.world if layout.zero_stage else 1
    weights, update_bytes = cost.parameters / shards, layout.optimizer.update_bytes
    if layout.offload:  # gradients go there, weights come back
        return (update_bytes + 2 * layout.bytes) * weights / HOST_BANDWIDTH
    rate = device.peak.get("bfloat16", device.peak["float32"]) * cores
    products = layout.optimizer.update_flops / shards
    products /= rate * device.efficiency(cost.matmul_width)
    return update_bytes * weights / device.bandwidth + products
