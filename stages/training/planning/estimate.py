"""The estimate of a training in a plan.

`TrainingEstimate.metrics` brings FLOPs, memory, traffic and time under the names of `headwater plan
--json`, `rows` under the words of its table; `infeasibilities` names, for a training that does not
fit its device, the first change of the file that makes it fit. What a model costs comes from a
`CostModel`. Imports no torch: `headwater plan` reads this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.atomic_io import format_bytes
from pipeline.errors import Problem
from stages.training.optim.optimizer_registry import find_optimizer
from stages.training.planning.cost_model import forecast
from stages.training.planning.device_layout import Layout
from stages.training.planning.device_specs import DEVICES, GIB
from stages.training.planning.estimate_row import EstimateRow, Unit
from stages.training.planning.layout_search import LayoutSearch
from stages.training.planning.memory_model import host_memory
from stages.training.planning.optimizer_cost import optimizer_cost

if TYPE_CHECKING:
    from pipeline.stage import Workers
    from stages.training.optim.optimizer_registry import OptimizerSpec
    from stages.training.planning.cost_model import CostModel, Forecast
    from stages.training.planning.device_specs import Device, HardwareSection
    from stages.training.training_params import TrainSection

UNKNOWN_GPU_FLOPS = 2e14
"""FLOP/s that are assumed of a GPU that the file does not name."""
MEMORY_KINDS = ("weights", "gradients", "optimizer", "activations", "buffers")


@dataclass(frozen=True)
class TrainingEstimate:
    """A training in a plan."""

    cost: CostModel
    train: TrainSection
    workers: Workers
    hardware: HardwareSection
    activation_checkpointing: bool = False
    document_mask: bool = False
    """True if attention is limited to documents."""
    initialized: bool = False
    """True if it starts from the weights of another model."""

    @property
    def device(self) -> Device | None:
        """The device of each worker; None for GPUs that the file does not name."""
        if self.hardware.device:
            return DEVICES[self.hardware.device]
        return None if self.workers.gpus else DEVICES["cpu"]

    @property
    def layout(self) -> Layout:
        """The layout of a step on the workers of the file."""
        return self._layout(self.workers.num)

    @property
    def _optimizer(self) -> OptimizerSpec:
        return find_optimizer(self.train.optimizer)

    def _layout(self, world: int) -> Layout:
        matrices = self.cost.block_matrices()
        return Layout.of(
            self.train,
            world,
            activation_checkpointing=self.activation_checkpointing,
            document_mask=self.document_mask,
            gpu=self.device is None or self.device.gpu,
            optimizer=optimizer_cost(self._optimizer, matrices, self.cost.parameters),
        )

    def _host(self, layout: Layout, devices_per_node: int) -> float:
        overhead = self.cost.load_overhead if self.initialized else 0.0
        return host_memory(self.cost.parameters, layout, devices_per_node, overhead)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of `Params.estimate` and, per device: its memory by kind
        (`weights_bytes`..., `memory_bytes` at once of `device_bytes`) and what it sends in a step
        (`communication_bytes`); for a node of GPUs `host_bytes`; and for a known device
        `step_seconds` and `mfu`."""
        cost, train, layout = self.cost, self.train, self.layout
        work = cost.arithmetic(layout, train.total_samples)
        memory, sent = cost.memory(layout), cost.traffic(layout)
        checkpoint = 4 + layout.optimizer.state_bytes
        found = cost.sizes(layout, train.total_samples) | {
            "parameters": cost.parameters,
            "steps": train.steps,
            "flops": work.flops,
            "hardware_flops": work.hardware_flops,
            "devices": layout.world,
            "memory_bytes": memory.peak,
            "weights_bytes": memory.weights,
            "gradients_bytes": memory.gradients,
            "optimizer_bytes": memory.optimizer,
            "activations_bytes": memory.activations,
            "buffers_bytes": memory.buffers,
            "communication_bytes": sent.total,
            "reduced_bytes": sent.reduced,
            "gathered_bytes": sent.gathered,
            "exchanged_bytes": sent.exchanged,
            "disk_bytes": cost.parameters * (4 + checkpoint * train.max_checkpoints),
        }
        if layout.gpu:
            found["host_bytes"] = self._host(layout, self.hardware.devices_per_node)
        return {name: float(value) for name, value in found.items()} | self._time()

    def _time(self) -> dict[str, float]:
        layout, device = self.layout, self.device
        if device is None or layout.dtype not in device.peak:
            work = self.cost.arithmetic(layout, self.train.total_samples)
            rate = layout.world * (self.workers.gpus or 1) * UNKNOWN_GPU_FLOPS
            return {"seconds": work.flops / rate}
        expected = self._forecast(layout, device)
        time = {
            "seconds": expected.seconds,
            "step_seconds": expected.step_seconds,
            "mfu": expected.mfu,
        }
        if math.isfinite(device.usable_memory):
            time["device_bytes"] = device.usable_memory
        return time

    def _forecast(self, layout: Layout, device: Device) -> Forecast:
        return forecast(
            self.cost,
            layout,
            self.cost.arithmetic(layout, self.train.total_samples),
            self.cost.traffic(layout),
            device,
            steps=self.train.steps,
            devices_per_node=self.hardware.devices_per_node,
            cores=1 if device.gpu else self.workers.cpus,
        )

    def rows(self) -> list[EstimateRow]:
        """Return the rows of the training's table in a plan."""
        found, unit = self.metrics(), self.cost.sample_unit
        parts = self.cost.parts(self.layout, self.train.total_samples)
        kinds = {kind: found[f"{kind}_bytes"] for kind in MEMORY_KINDS}
        rows = [
            _row("parameters", found["parameters"], parts.get("parameters")),
            _row(unit, found[unit], {"per step": found[unit] / found["steps"]}),
            _row("steps", found["steps"]),
            _row("FLOPs", found["flops"], parts.get("flops")),
            _row("memory per device", found["memory_bytes"], kinds, "bytes"),
        ]
        if found["hardware_flops"] > found["flops"]:
            rows.insert(4, _row("FLOPs with recomputation", found["hardware_flops"]))
        if "activations" in parts:
            held = found["activations_bytes"]
            rows.append(_row("activations per device", held, parts["activations"], "bytes"))
        if "device_bytes" in found:
            rows.append(_row("usable memory per device", found["device_bytes"], unit="bytes"))
        if "host_bytes" in found:
            note = "in addition to the memory of its devices"
            rows.append(_row("memory per node", found["host_bytes"], unit="bytes", note=note))
        labels = {"reduced": "gradients", "gathered": "weights", "exchanged": self.cost.exchange}
        sent = {label: found[f"{way}_bytes"] for way, label in labels.items()}
        sent = {label: value for label, value in sent.items() if value}
        rows.append(_row("sent per device and step", found["communication_bytes"], sent, "bytes"))
        if "mfu" in found:
            rows.append(_row("MFU", found["mfu"], unit="share"))
            rows.append(_row("time per step", found["step_seconds"], unit="seconds"))
        rows.append(_row("time", found["seconds"], unit="seconds"))
        hours = found["seconds"] * found["devices"] / 3600
        rows.append(_row("device hours", hours, {"devices": found["devices"]}))
        return rows

    def infeasibilities(self) -> Iterator[Problem]:
        """Yield what the device that the file names cannot do."""
        name, device = self.hardware.device, self.device
        if name is None or device is None:
            return
        if device.gpu != bool(self.workers.gpus):
            message, remedy = (
                (f"{name} is a GPU, workers.gpus is 0", "set workers.gpus: 1")
                if device.gpu
                else ("is a CPU, workers.gpus is not 0", "name the GPU")
            )
            yield Problem("hardware.device", message, remedy)
        elif self.train.dtype not in device.peak:
            dtypes = " or ".join(device.peak)
            message = f"{name} does not compute in {self.train.dtype}"
            yield Problem("train.dtype", message, f"{dtypes}, or another hardware.device")
        elif (memory := self.cost.memory(self.layout)).peak > device.usable_memory:
            when = (
                " before ZeRO 3 shards the weights" if memory.peak == memory.initialization else ""
            )
            message = f"takes {format_bytes(memory.peak)} per device{when}"
            message = f"{message}, {name} has room for {format_bytes(device.usable_memory)}"
            changed = self._search(device).fewest_changes(self.workers.num)
            remedy = ", ".join(f"{key}: {value}" for key, value in changed.items())
            first = next(iter(changed), "model")
            yield Problem(first, message, remedy or "a smaller model, or a device with more memory")
        else:
            yield from self._host_infeasibilities()

    def _search(self, device: Device) -> LayoutSearch:
        return LayoutSearch(
            self.cost,
            self.train,
            self._optimizer,
            device,
            self._layout,
            lambda layout: self._forecast(layout, device).step_seconds,
        )

    def _host_infeasibilities(self) -> Iterator[Problem]:
        hardware, layout = self.hardware, self.layout
        if hardware.host_memory_gib is None or not layout.gpu:
            return
        limit, need = hardware.host_memory_gib * GIB, self._host(layout, hardware.devices_per_node)
        if need <= limit:
            return
        message = f"processes of a node take {format_bytes(need)} of its memory at once"
        counts = range(1, hardware.devices_per_node)
        fitting = [count for count in counts if self._host(layout, count) <= limit]
        remedy = "nodes with more memory"
        if fitting:
            fewer = f"fewer devices per node (hardware.devices_per_node: {fitting[-1]})"
            remedy = f"{fewer}, or {remedy}"
        yield Problem("hardware.host_memory_gib", message, remedy)


def _row(
    name: str,
    value: float,
    parts: Mapping[str, float] | None = None,
    unit: Unit = "count",
    note: str = "",
) -> EstimateRow:
    return EstimateRow(name=name, value=value, unit=unit, parts=dict(parts or {}), note=note)
