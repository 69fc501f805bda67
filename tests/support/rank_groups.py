"""A group of ranks with the context that it reports to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from forked_ranks import Forked

from pipeline.context import Context, read_series
from pipeline.stage import Workers
from stages.training.ranks.watchdog import WatchdogSection
from stages.training.ranks.worker_group import WorkerGroup


@dataclass
class RankGroup:
    """A running group and the context that it reports to."""

    group: WorkerGroup
    ctx: Context

    def series(self, name: str, key: str) -> dict[int, float]:
        """Return one metric of a training by step."""
        points = read_series(self.ctx.observed / "metrics.jsonl")
        full = key if name == "train" else f"{name}_{key}"
        return {point["step"]: point[full] for point in points if full in point}

    def checkpoints(self, name: str) -> Path:
        """Return the folder of a training checkpoints."""
        return self.ctx.scratch / "checkpoints" / name


@contextmanager
def running_ranks(
    folder: Path, world: int, limits: WatchdogSection | None = None
) -> Iterator[RankGroup]:
    """Start a group of forked ranks, and end it afterwards."""
    ctx = Context.local(folder)
    group = WorkerGroup(Workers(num=world), ctx, limits, backend="local")
    group._launcher = Forked()
    with group:
        yield RankGroup(group, ctx)


def copy_due(source: Path, step: int, target: Path) -> None:
    """The checkpoint that fell due at a step, without later ones."""
    (due,) = source.glob(f"*-step-{step:08d}")
    shutil.copytree(due, target / due.name)
