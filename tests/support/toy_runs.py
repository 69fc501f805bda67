"""Runs of toy stages: how tests make them, watch them and compare what they made."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

from pipeline.execution import plan as planning
from pipeline.execution.run import Run
from pipeline.spec.spec_checker import load_spec
from pipeline.storage.store import Store

DEADLINE = 30.0  # seconds until a test gives up on something that must happen
TWO_AND_SUM = """
a: {uses: toy.count, value: 1}
b: {uses: toy.count, value: 2}
sum: {uses: toy.add, numbers: ["${a}", "${b}"]}
"""


def make(store: Store, stages: str, **selection: Any) -> Run:
    """A run of a pipeline with these stages."""
    file = store.root.parent / "toy.yaml"
    indented = "".join(f"  {line}\n" for line in dedent(stages).strip().splitlines())
    file.write_text(f"name: toy\nseed: 0\nstages:\n{indented}")
    spec = load_spec(file)
    return Run.create(store, spec, planning.make_plan(spec, store, **selection))


def states(run: Run) -> dict[str, str]:
    """The state of each stage."""
    return {stage.name: stage.state for stage in run.status().stages}


def events(run: Run, kind: str, stage: str | None = None) -> list[dict[str, Any]]:
    """The journal's events of one kind."""
    return [
        event
        for event in run.events()
        if event["event"] == kind and stage in (None, event.get("stage"))
    ]


def numbers(run: Run) -> dict[str, str]:
    """What each stage made."""
    return {
        stage.name: Path(stage.path, "number.txt").read_text().strip()
        for stage in run.status().stages
        if stage.path
    }


def digests(run: Run) -> dict[str, str]:
    """The content of each stage's artifact."""
    found = {s.name: run.store.latest_readable(s.uses, s.fingerprint) for s in run.status().stages}
    return {name: artifact.digest for name, artifact in found.items() if artifact}


def held(hold: Path, more: str = "") -> str:
    """`TWO_AND_SUM`, in which the first stage waits while a file exists."""
    return TWO_AND_SUM.replace("value: 1", f"value: 1, hold: {hold}{more}")


def holds(run: Run, stage: str, attempt: int = 1) -> bool:
    """Whether that attempt has come to where it waits."""
    return run.attempt_dir(stage, attempt).joinpath("holds").exists()


def process_of(run: Run, stage: str, attempt: int = 1) -> int:
    """The process that carries out an attempt which waits or waited."""
    return int(run.attempt_dir(stage, attempt).joinpath("holds").read_text())


def log(run: Run, stage: str, attempt: int = 1) -> str:
    """What an attempt said."""
    return run.attempt_dir(stage, attempt).joinpath("log.txt").read_text()


def until(happened: Callable[[], Any], seconds: float = DEADLINE) -> None:
    """Wait for something that must happen."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
