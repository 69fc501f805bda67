"""The layout of a training step on devices, as plans compute with it.

Imports no torch: `headwater plan` reads this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.training.planning.optimizer_cost import ADAMW, OptimizerCost

if TYPE_CHECKING:
    from stages.training.training_params import TrainSection

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Layout:
    """The division of a training step among devices."""

    world: int
    zero: int
    """ZeRO stage that is run."""
    dtype: str
    micro: int
    """Samples of one pass on one device."""
    passes: int
    """Forward and backward passes of a step on one device."""
    activation_checkpointing: bool = False
    expert_parallel_size: int = 1
    """Devices over which one set of experts is sharded."""
    masked: bool = False
    """Whether attention is given a mask of documents."""
    gpu: bool = True
    offload: bool = False
    """Whether master weights and optimizer states are kept, and updated, in host memory."""
    optimizer: OptimizerCost = ADAMW

    @classmethod
    def of(
        cls,
        train: TrainSection,
        world: int,
        *,
        activation_checkpointing: bool = False,
        masked: bool = False,
        gpu: bool = True,
        optimizer: OptimizerCost | None = None,
    ) -> Layout:
        """Return the layout of a pipeline file's `train` on that many devices."""
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
            optimizer or ADAMW,
        )

    @property
    def bytes(self) -> int:
        """Bytes of a weight, an activation or a gradient."""
        return BYTES[self.dtype]

    @property
    def copies(self) -> int:
        """Devices that hold the same experts."""
        return self.world // self.expert_parallel_size
