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
    zero_stage: int
    """ZeRO stage that is run."""
    dtype: str
    micro_batch_size: int
    """Samples of one pass on one device."""
    gradient_accumulation_steps: int
    """Forward and backward passes of a step on one device."""
    activation_checkpointing: bool = False
    expert_parallel_size: int = 1
    """Devices over which one set of experts is sharded."""
    document_mask: bool = False
    """True if attention is limited by a mask to the token's document."""
    gpu: bool = True
    offload: bool = False
    """True if master weights and optimizer states are kept, and updated, in host memory."""
    optimizer: OptimizerCost = ADAMW

    @classmethod
    def of(
        cls,
        train: TrainSection,
        world: int,
        *,
        activation_checkpointing: bool = False,
        document_mask: bool = False,
        gpu: bool = True,
        optimizer: OptimizerCost | None = None,
    ) -> Layout:
        """Return the layout of a pipeline file's `train` on that many devices."""
        rank_batch_size = max(1, train.rank_batch_size(world))
        micro_batch_size = min(train.rank_micro_batch_size(world), rank_batch_size)
        return cls(
            world,
            train.effective_zero_stage(world),
            train.dtype,
            micro_batch_size,
            rank_batch_size // micro_batch_size,
            activation_checkpointing,
            train.expert_parallel_size,
            document_mask,
            gpu,
            train.offload_optimizer != "none",
            optimizer or ADAMW,
        )

    @property
    def bytes(self) -> int:
        """Bytes of a weight, an activation or a gradient."""
        return BYTES[self.dtype]

    @property
    def expert_replicas(self) -> int:
        """Devices that hold the same experts."""
        return self.world // self.expert_parallel_size
