"""`logs`: what the stages and their ranks wrote, from the store, as it grows if asked."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launch.ui.options import find_run, store_option
from pipeline.errors import NotFound, did_you_mean
from pipeline.redaction import escape_control_characters
from pipeline.status import TERMINAL_STATES

if TYPE_CHECKING:
    from pipeline.execution.run import Run

LOOK = 0.5  # seconds between two looks at growing files
JOB = "job.log"


@click.command()
@click.argument("name", metavar="RUN", default="latest")
@click.argument("stage", metavar="[STAGE]", required=False)
@click.option("--rank", type=click.IntRange(min=0), metavar="N", help="One process of a group.")
@click.option("--attempt", type=click.IntRange(min=1), metavar="K", help="[default: the newest]")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run is over.")
@store_option
def logs(
    name: str,
    stage: str | None,
    rank: int | None,
    attempt: int | None,
    follow: bool,
    store_path: str,
) -> None:
    """Print the logs of a run: of all its stages, of one, or of one rank."""
    run = find_run(store_path, name)
    reader = LogReader(run, stage, rank, attempt)
    if stage:
        _check_stage(run, stage)
    shown = False
    while follow and run.status().state not in TERMINAL_STATES:
        shown = _print(reader) or shown
        time.sleep(LOOK)
    shown = _print(reader, last=True) or shown
    if not shown:
        raise NotFound(*_nothing(run, stage, rank))


def _check_stage(run: Run, stage: str) -> None:
    stages = [entry.name for entry in run.status().stages]
    if stage not in stages:
        raise NotFound(f"run {run.id} has no stage {stage!r}", remedy=did_you_mean(stage, stages))


def _nothing(run: Run, stage: str | None, rank: int | None) -> tuple[str]:
    what = f"stage {stage}" if stage else "no stage"
    if stage and rank is not None:
        return (f"{what} of run {run.id} has no log of rank {rank}",)
    if stage:
        return (f"{what} of run {run.id} has written no log (cached, or not begun)",)
    return (f"{what} of run {run.id} has written a log (all cached, or none begun)",)


def _print(reader: LogReader, last: bool = False) -> bool:
    shown = False
    for line in reader.lines(last):
        sys.stdout.write(line + "\n")
        shown = True
    sys.stdout.flush()
    return shown


@dataclass
class LogReader:
    """Reads what is new in a run's log files since the last look."""

    run: Run
    stage: str | None = None
    rank: int | None = None
    attempt: int | None = None
    _read: dict[Path, int] = field(default_factory=dict)

    def lines(self, last: bool = False) -> Iterator[str]:
        """New whole lines of every file, named if there are several; `last`: torn ones too."""
        for label, path in self.files():
            for line in self._new(path, last):
                yield f"{label} | {line}" if label else line

    def files(self) -> Iterator[tuple[str, Path]]:
        """The files that are meant, each with what to call it (nothing if it is the only kind)."""
        for folder in self._stages():
            found = self._attempts(folder)
            for attempt in found if self.attempt else found[-1:]:
                for path in self._logs(attempt):
                    rank = "" if path.name == "log.txt" else path.stem
                    stage = "" if self.stage else folder.name
                    lone = self.rank is not None and self.stage
                    yield "" if lone else " ".join(w for w in (stage, rank) if w), path

    def _stages(self) -> list[Path]:
        root = self.run.folder / "stages"
        if self.stage:
            return [root / self.stage]
        order = [entry.name for entry in self.run.status().stages]
        return [root / name for name in order if (root / name).is_dir()]

    def _attempts(self, folder: Path) -> list[Path]:
        if self.attempt:
            return [folder / f"attempt-{self.attempt}"]
        return sorted(folder.glob("attempt-*"), key=lambda path: int(path.name.partition("-")[2]))

    def _logs(self, attempt: Path) -> list[Path]:
        if self.rank is not None:
            names = [f"rank-{self.rank}.log", f"stacks-{self.rank}.txt"]
        elif self.stage:
            names = ["log.txt", *sorted(p.name for p in attempt.glob("rank-*.log"))]
        else:
            names = ["log.txt"]
        return [attempt / name for name in names if (attempt / name).is_file()]

    def _new(self, path: Path, last: bool) -> Iterator[str]:
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            fresh = file.read()
        whole = len(fresh) if last else fresh.rfind(b"\n") + 1
        self._read[path] = self._read.get(path, 0) + whole
        for line in fresh[:whole].decode(errors="replace").splitlines():
            yield escape_control_characters(line)
