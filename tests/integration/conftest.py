"""Groups of ranks that many tests share: starting one takes seconds of imports."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "stages" / "training"))

from pipeline.context import Context, read_series
from pipeline.stage import Workers
from stages.training.group import WorkerGroup


@dataclass
class Room:
    """A running group and the context that it reports to."""

    group: WorkerGroup
    ctx: Context

    def series(self, name: str, key: str) -> dict[int, float]:
        """One training's figures by step."""
        points = read_series(self.ctx.observed / "metrics.jsonl")
        full = key if name == "train" else f"{name}_{key}"
        return {point["step"]: point[full] for point in points if full in point}

    def checkpoints(self, name: str) -> Path:
        """Where a training's checkpoints are."""
        return self.ctx.scratch / "checkpoints" / name


def room(folder: Path, world: int) -> Iterator[Room]:
    """A group of local processes."""
    ctx = Context.local(folder)
    with WorkerGroup(Workers(num=world), ctx, backend="local") as group:
        yield Room(group, ctx)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """Two ranks."""
    yield from room(tmp_path_factory.mktemp("pair"), 2)


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """One rank."""
    yield from room(tmp_path_factory.mktemp("single"), 1)
