"""One process of a training group, and its collectives."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

if TYPE_CHECKING:
    from pipeline.context import Context

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""The timeout of torch's collectives. The group's watchdog ends a hang long before."""
POLL_INTERVAL = 0.002
"""Seconds between two checks whether all ranks have reached a barrier."""


@dataclass
class RankProgress:
    """Progress counters of a rank, which the watchdog reads."""

    count: int = 0
    """Units of work done. All ranks of a training count alike, so the smallest is behind."""
    waits: int = 0
    """Heartbeats while waiting for other ranks or for a disk."""
    step_seconds: float = 0.0
    """Median time of recent steps, in seconds; 0 before the first step and after the last."""

    def reset(self) -> None:
        """Start counting anew."""
        self.count, self.waits, self.step_seconds = 0, 0, 0.0


@dataclass
class Rank:
    """This process among `world` processes that run the same function."""

    index: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    ctx: Context | None = None
    """Rank 0's context; None on the others, so that nothing is reported twice."""
    progress: RankProgress = field(default_factory=RankProgress)

    @classmethod
    def join(
        cls,
        index: int,
        world: int,
        store: torch._C._distributed_c10d.Store,
        *,
        gpu: bool = False,
        ctx: Context | None = None,
        progress: RankProgress | None = None,
    ) -> Rank:
        """Join the process group whose members meet at `store`, and return this rank."""
        device = torch.device("cpu")
        if gpu:
            # A worker sees its own GPU only, or else all GPUs of the machine, which ranks share.
            device = torch.device("cuda", index % torch.cuda.device_count())
            torch.cuda.set_device(device)
        os.environ.update(RANK=str(index), WORLD_SIZE=str(world), LOCAL_RANK=str(device.index or 0))
        dist.init_process_group(
            "nccl" if gpu else "gloo",
            store=store,
            rank=index,
            world_size=world,
            timeout=COLLECTIVE_TIMEOUT,
        )
        return cls(index, world, device, ctx, progress or RankProgress())

    @classmethod
    def single_process(cls, ctx: Context | None = None) -> Rank:
        """Return this process as a group of one (tests, notebooks); call `leave` afterwards."""
        return cls.join(0, 1, torch._C._distributed_c10d.HashStore(), ctx=ctx)

    def leave(self) -> None:
        """Leave the process group."""
        dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Return whether this is rank 0, which reports and commits."""
        return self.index == 0

    @property
    def stage(self) -> str:
        """Return the stage's name, or an empty text where it is unknown."""
        return self.ctx.stage if self.ctx else ""

    def heartbeat(self) -> None:
        """Report progress to the watchdog."""
        self.progress.count += 1

    def heartbeat_waiting(self) -> None:
        """Report to the watchdog that this rank is alive and waits for something else."""
        self.progress.waits += 1

    def all_reduce_sum(self, values: Iterable[float] | Tensor) -> Tensor:
        """Return the element-wise sum over ranks, in float64 on the device, without waiting."""
        if not isinstance(values, Tensor):
            values = torch.tensor(list(values))
        sums = values.to(self.device, torch.float64)
        if self.world > 1:
            sums = sums.clone() if sums is values else sums
            dist.all_reduce(sums)
        return sums

    def reduce_scalar(self, value: float) -> float:
        """Return the sum of a number over ranks."""
        return float(self.all_reduce_sum([value])) if self.world > 1 else float(value)

    def all_reduce_any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank; all ranks get the same answer."""
        return self.reduce_scalar(float(flag)) > 0

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return every rank's value, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all ranks. A waiting rank reports so to the watchdog, however long the others
        take."""
        if self.world > 1:
            reached = dist.barrier(async_op=True)
            while not reached.is_completed():
                self.heartbeat_waiting()
                time.sleep(POLL_INTERVAL)
            reached.wait()

    def stop_requested(self) -> bool:
        """Return whether the run is to stop; all ranks get the same answer at the same point."""
        return self.all_reduce_any(self.ctx is not None and self.ctx.cancelled)
