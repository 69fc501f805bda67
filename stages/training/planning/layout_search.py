"""The search for the fewest changes of a pipeline file that make a training fit its device.

Imports no torch: `headwater plan` reads this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.training.optim.optimizer_registry import OptimizerSpec
    from stages.training.planning.cost_model import CostModel
    from stages.training.planning.device_layout import Layout
    from stages.training.planning.device_specs import Device
    from stages.training.training_params import TrainSection

TUNABLES = {
    "train.zero_stage": "zero_stage",
    "train.micro_batch_size": "micro_batch_size",
    "model.activation_checkpointing": "activation_checkpointing",
    "train.expert_parallel_size": "expert_parallel_size",
    "train.offload_optimizer": "offload",
}
"""Keys that may be changed, with the layout fields that they set, in the order of a message."""


@dataclass(frozen=True)
class LayoutSearch:
    """The layouts that a training may have instead of its own."""

    cost: CostModel
    train: TrainSection
    optimizer: OptimizerSpec
    device: Device
    layout: Callable[[int], Layout]
    """Returns the file's layout on that many workers."""
    step_seconds: Callable[[Layout], float]

    def fewest_changes(self, workers: int) -> dict[str, str]:
        """Return the fewest changes of the file that make the training fit, and of those the ones
        with the fastest step: of the layout, then with twice the workers, and so on; empty if
        nothing fits."""
        world = workers
        while world <= self.train.global_batch_size:
            own = self.layout(world)
            fitting = [
                (changes(own, layout), layout)
                for layout in self._smaller_layouts(own)
                if self.cost.memory(layout).peak <= self.device.usable_memory
            ]
            if fitting and self.train.global_batch_size % world == 0:
                best = min(fitting, key=lambda found: (len(found[0]), self.step_seconds(found[1])))
                more = {"workers.num": str(world)} if world > workers else {}
                return more | best[0]
            world *= 2
        return {}

    def _smaller_layouts(self, own: Layout) -> Iterator[Layout]:
        """Yield the layouts on as many workers that take no more memory than the file's."""
        samples = own.micro_batch_size * own.gradient_accumulation_steps
        stages = self.optimizer.zero_stages
        for offload, zero, micro, checkpointing, size in product(
            sorted({own.offload, True} if self.optimizer.supports_offload else {own.offload}),
            [stage for stage in stages if stage >= own.zero_stage],
            [micro for micro in range(own.micro_batch_size, 0, -1) if samples % micro == 0],
            sorted({own.activation_checkpointing, True}),
            self._expert_parallel_sizes(own.world),
        ):
            yield replace(
                own,
                zero_stage=max(zero, 1) if offload else zero,
                offload=offload,
                micro_batch_size=micro,
                gradient_accumulation_steps=samples // micro,
                activation_checkpointing=checkpointing,
                expert_parallel_size=size,
            )

    def _expert_parallel_sizes(self, world: int) -> list[int]:
        experts, own = self.cost.num_experts, self.train.expert_parallel_size
        sizes = range(own, min(experts, world) + 1)
        return [size for size in sizes if experts % size == 0 and world % size == 0] or [own]


def changes(own: Layout, layout: Layout) -> dict[str, str]:
    """Return the keys of the file, with their values, that turn one layout into another."""
    pairs = {key: (getattr(own, field), getattr(layout, field)) for key, field in TUNABLES.items()}
    changed = {key: new for key, (old, new) in pairs.items() if old != new}
    if "train.offload_optimizer" in changed:
        changed["train.offload_optimizer"] = "cpu"
        if layout.zero_stage == 1:  # offload implies it
            changed.pop("train.zero_stage", None)
    return {key: str(new).lower() for key, new in changed.items()}
