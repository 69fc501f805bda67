"""One process of a training group: who it is, and how it talks to the others."""

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

TIMEOUT = timedelta(minutes=30)
"""Of a collective. The group's watchdog ends a hang long before; this is the second net."""
PAUSE = 0.002
"""Seconds between two looks at whether all ranks have come to a barrier."""


@dataclass
class Pulse:
    """What a rank shows the watchdog: counters that grow, and how long a step takes."""

    count: int = 0
    """What was done; all ranks of a training count alike, so the least shows who is behind."""
    waits: int = 0
    """Signs of life while waiting for the others or for a disk."""
    step_seconds: float = 0.0
    """Median of recent steps; 0 while there are none (starting, exporting)."""

    def start(self) -> None:
        """Something new begins."""
        self.count, self.waits, self.step_seconds = 0, 0, 0.0


@dataclass
class Rank:
    """This process among `world` alike ones."""

    index: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    ctx: Context | None = None
    """Rank 0's context; None on the others, so that nothing is reported twice."""
    pulse: Pulse = field(default_factory=Pulse)

    @classmethod
    def join(
        cls,
        index: int,
        world: int,
        store: torch._C._distributed_c10d.Store,
        *,
        gpu: bool = False,
        ctx: Context | None = None,
        pulse: Pulse | None = None,
    ) -> Rank:
        """Join the process group whose members meet at `store`."""
        device = torch.device("cpu")
        if gpu:
            # A worker with a GPU of its own sees that one alone; without such a wall they share.
            device = torch.device("cuda", index % torch.cuda.device_count())
            torch.cuda.set_device(device)
        os.environ.update(RANK=str(index), WORLD_SIZE=str(world), LOCAL_RANK=str(device.index or 0))
        dist.init_process_group(
            "nccl" if gpu else "gloo", store=store, rank=index, world_size=world, timeout=TIMEOUT
        )
        return cls(index, world, device, ctx, pulse or Pulse())

    @classmethod
    def alone(cls, ctx: Context | None = None) -> Rank:
        """This process as a group of one (tests, notebooks); call `leave` afterwards."""
        return cls.join(0, 1, torch._C._distributed_c10d.HashStore(), ctx=ctx)

    def leave(self) -> None:
        """Leave the process group."""
        dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which reports and commits."""
        return self.index == 0

    @property
    def stage(self) -> str:
        """The stage's name, where it is known."""
        return self.ctx.stage if self.ctx else ""

    def beat(self) -> None:
        """Tell the watchdog that something was done."""
        self.pulse.count += 1

    def wait(self) -> None:
        """Tell the watchdog that this rank is well, and waits for something else."""
        self.pulse.waits += 1

    def total(self, values: Iterable[float] | Tensor) -> Tensor:
        """The element-wise sum over ranks as float64 on the device: nothing waits for it."""
        if not isinstance(values, Tensor):
            values = torch.tensor(list(values))
        sums = values.to(self.device, torch.float64)
        if self.world > 1:
            sums = sums.clone() if sums is values else sums
            dist.all_reduce(sums)
        return sums

    def sum(self, value: float) -> float:
        """The sum of a number over ranks."""
        return float(self.total([value])) if self.world > 1 else float(value)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on some rank: all ranks decide alike."""
        return self.sum(float(flag)) > 0

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all ranks. Those that are here already say so to the watchdog, however long
        the others take."""
        if self.world > 1:
            met = dist.barrier(async_op=True)
            while not met.is_completed():
                self.wait()
                time.sleep(PAUSE)
            met.wait()

    def stopping(self) -> bool:
        """Whether somebody asked the run to stop: all ranks learn it at the same point."""
        return self.any(self.ctx is not None and self.ctx.cancelled)
