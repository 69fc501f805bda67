"""What a plan says of training a language model, and what it refuses.

`estimate` brings arithmetic, memory, traffic and time under the names that `headwater plan` shows;
`infeasibilities` names, for what does not fit a device, the first change of the file that makes it fit.
Imports no torch: `headwater plan` reads this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from pipeline.atomic_io import format_bytes
from pipeline.errors import Problem
from stages.training.planning.cost_model import Layout, arithmetic, forecast, traffic
from stages.training.planning.device_specs import DEVICES, GIB
from stages.training.planning.memory_model import host_memory, load_overhead, memory

if TYPE_CHECKING:
    from pipeline.stage import Workers
    from stages.models.language_model_config import LanguageConfig
    from stages.training.planning.cost_model import Arithmetic, Forecast, Traffic
    from stages.training.planning.device_specs import Device, HardwareSection
    from stages.training.planning.memory_model import Memory
    from stages.training.training_params import TrainSection

SOME_GPU = 2e14
"""FLOP/s that a GPU of which nothing is known may be expected to do."""
TUNABLES = (
    "train.zero_stage",
    "train.micro_batch_size",
    "model.activation_checkpointing",
    "train.expert_parallel_size",
    "train.offload_optimizer",
)
"""What is turned to make a training fit."""


@dataclass(frozen=True)
class TrainingEstimate:
    """A training as a plan sees it."""

    config: LanguageConfig
    train: TrainSection
    workers: Workers
    hardware: HardwareSection
    activation_checkpointing: bool = False
    masked: bool = False
    """Whether tokens see their own document alone."""
    start: bool = False
    """Whether it begins with the weights of another model."""

    @property
    def device(self) -> Device | None:
        """What it runs on; None for GPUs that the file does not name."""
        if self.hardware.device:
            return DEVICES[self.hardware.device]
        return None if self.workers.gpus else DEVICES["cpu"]

    @property
    def layout(self) -> Layout:
        """How a step falls on devices."""
        return self._layout(self.workers.num)

    def _layout(self, world: int) -> Layout:
        return Layout.of(
            self.train,
            world,
            activation_checkpointing=self.activation_checkpointing,
            masked=self.masked,
            gpu=self.device is None or self.device.gpu,
        )

    def _work(self, layout: Layout) -> Arithmetic:
        return arithmetic(self.config, layout, self.train.total_samples)

    def _memory(self, layout: Layout) -> Memory:
        return memory(self.config, layout)

    def _traffic(self, layout: Layout) -> Traffic:
        return traffic(self.config, layout)

    def _host(self, layout: Layout, per_node: int) -> float:
        beside = self._reading() if self.start else 0.0
        return host_memory(self.config.parameters, layout, per_node, beside)

    def _reading(self) -> float:
        return load_overhead(self.config)

    def estimate(self) -> dict[str, float]:
        """What `Params.estimate` promises, and of one device: its memory by kind
        (`weights_bytes`…, `memory_bytes` at once of `device_bytes`), what it sends in a step
        (`communication_bytes`); of a node of GPUs `host_bytes`; and where the device is known
        `step_seconds` and `mfu`."""
        config, train, layout = self.config, self.train, self.layout
        work, held, sent = self._work(layout), self._memory(layout), self._traffic(layout)
        found = self._size(layout) | {
            "parameters": config.parameters,
            "steps": train.steps,
            "flops": work.flops,
            "hardware_flops": work.hardware_flops,
            "devices": layout.world,
            "memory_bytes": held.peak,
            "weights_bytes": held.weights,
            "gradients_bytes": held.gradients,
            "optimizer_bytes": held.optimizer,
            "activations_bytes": held.activations,
            "buffers_bytes": held.buffers,
            "communication_bytes": sent.total,
            "reduced_bytes": sent.reduced,
            "gathered_bytes": sent.gathered,
            "exchanged_bytes": sent.exchanged,
            "disk_bytes": 4.0 * config.parameters * (1 + 3 * train.max_checkpoints),
        }
        if layout.gpu:
            found["host_bytes"] = self._host(layout, self.hardware.per_node)
        return {name: float(value) for name, value in found.items()} | self._time()

    def _size(self, layout: Layout) -> dict[str, float]:
        """What this kind of model is measured by."""
        tokens = self._work(layout).tokens
        return {"active_parameters": self.config.active_parameters, "tokens": tokens}

    def _time(self) -> dict[str, float]:
        layout, device = self.layout, self.device
        if device is None or layout.dtype not in device.peak:
            work = self._work(layout)
            return {"seconds": work.flops / (layout.world * (self.workers.gpus or 1) * SOME_GPU)}
        made = self._forecast(layout, device)
        time = {"seconds": made.seconds, "step_seconds": made.step_seconds, "mfu": made.mfu}
        if math.isfinite(device.usable):
            time["device_bytes"] = device.usable
        return time

    def _forecast(self, layout: Layout, device: Device) -> Forecast:
        return forecast(
            self.config,
            layout,
            self._work(layout),
            self._traffic(layout),
            device,
            steps=self.train.steps,
            per_node=self.hardware.per_node,
            cores=1 if device.gpu else self.workers.cpus,
        )

    def infeasibilities(self) -> Iterator[Problem]:
        """Yield what the device that the file names cannot do."""
        name, device = self.hardware.device, self.device
        if name is None or device is None:
            return
        if device.gpu != bool(self.workers.gpus):
            said, hint = (
                (f"{name} is a GPU, workers.gpus is 0", "set workers.gpus: 1")
                if device.gpu
                else ("is a processor, workers.gpus is not 0", "name the GPU")
            )
            yield Problem("hardware.device", said, hint)
        elif self.train.dtype not in device.peak:
            able = " or ".join(device.peak)
            said = f"{name} computes no {self.train.dtype}"
            yield Problem("train.dtype", said, f"{able}, or another hardware.device")
        elif (held := self._memory(self.layout)).peak > device.usable:
            when = " before ZeRO 3 cuts the weights up" if held.peak == held.starting else ""
            said = f"takes {format_bytes(held.peak)} a device{when}"
            said = f"{said}, {name} has room for {format_bytes(device.usable)}"
            knobs = self._remedy(device)
            hint = ", ".join(f"{key}: {value}" for key, value in knobs.items())
            first = next(iter(knobs), "model")
            yield Problem(first, said, hint or "a smaller model, or a device with more memory")
        else:
            yield from self._host_infeasibilities()

    def _host_infeasibilities(self) -> Iterator[Problem]:
        hardware, layout = self.hardware, self.layout
        need = self._host(layout, hardware.per_node)
        if hardware.host_gib is None or not layout.gpu or need <= hardware.host_gib * GIB:
            return
        said = f"processes of a node take {format_bytes(need)} of its memory at once"
        fitting = [
            num
            for num in range(1, hardware.per_node)
            if self._host(layout, num) <= hardware.host_gib * GIB
        ]
        hint = "nodes with more memory"
        if fitting:
            hint = f"fewer devices a node (hardware.per_node: {fitting[-1]}), or {hint}"
        yield Problem("hardware.host_gib", said, hint)

    def _remedy(self, device: Device) -> dict[str, str]:
        """The fewest changes of the file that make it fit, and of those the ones with the fastest
        step: of the layout, then with twice the workers, and so on; empty if nothing does."""
        world = self.workers.num
        while world <= self.train.global_batch_size:
            own = self._layout(world)
            fitting = [
                (self._changes(own, layout), layout)
                for layout in self._layouts(own)
                if self._memory(layout).peak <= device.usable
            ]
            if fitting and self.train.global_batch_size % world == 0:
                cost = {
                    layout: (len(knobs), self._forecast(layout, device).step_seconds)
                    for knobs, layout in fitting
                }
                more = {"workers.num": str(world)} if world > self.workers.num else {}
                return more | min(fitting, key=lambda pair: cost[pair[1]])[0]
            world *= 2
        return {}

    def _layouts(self, own: Layout) -> Iterator[Layout]:
        """All layouts of so many workers that take less memory than the file's."""
        share = own.micro * own.passes
        by_muon = self.train.optimizer == "muon"
        for offload, zero, micro, activation_checkpointing, spread in product(
            [own.offload] if by_muon else sorted({own.offload, True}),
            range(own.zero, 3 if by_muon else 4),
            [micro for micro in range(own.micro, 0, -1) if share % micro == 0],
            sorted({own.activation_checkpointing, True}),
            self._expert_parallel_sizes(own.world),
        ):
            yield replace(
                own,
                zero=max(zero, 1) if offload else zero,
                offload=offload,
                micro=micro,
                passes=share // micro,
                activation_checkpointing=activation_checkpointing,
                expert_parallel_size=spread,
            )

    def _expert_parallel_sizes(self, world: int) -> list[int]:
        """Sizes of expert parallelism from the file's on."""
        experts, own = getattr(self.config, "experts", None), self.train.expert_parallel_size
        if experts is None:
            return [own]
        sizes = range(own, min(experts.num_experts, world) + 1)
        return [
            size for size in sizes if experts.num_experts % size == 0 and world % size == 0
        ] or [own]

    def _changes(self, own: Layout, layout: Layout) -> dict[str, str]:
        fields = ("zero", "micro", "activation_checkpointing", "expert_parallel_size", "offload")
        pairs = [(getattr(own, name), getattr(layout, name)) for name in fields]
        changed = {key: new for key, (old, new) in zip(TUNABLES, pairs, strict=True) if old != new}
        if "train.offload_optimizer" in changed:
            changed["train.offload_optimizer"] = "cpu"
            if layout.zero == 1:  # it comes with that
                changed.pop("train.zero_stage", None)
        return {key: str(new).lower() for key, new in changed.items()}
