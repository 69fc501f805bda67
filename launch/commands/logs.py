"""`logs`: output of stages and their ranks, from the store."""

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

POLL_INTERVAL = 0.5  # seconds between two reads of growing files
JOB = "job.log"


@click.command()
@click.argument("name", metavar="RUN", default="latest")
@click.argument("stage", metavar="[STAGE]", required=False)
@click.option(
    "--rank", type=click.IntRange(min=0), metavar="N", help="Print the log of one rank only."
)
@click.option(
    "--attempt",
    type=click.IntRange(min=1),
    metavar="K",
    help="Attempt of the stage.  [default: the newest]",
)
@click.option("-f", "--follow", is_flag=True, help="Keep printing until the run ends.")
@store_option
def logs(
    name: str,
    stage: str | None,
    rank: int | None,
    attempt: int | None,
    follow: bool,
    store_path: str,
) -> None:
    """Print the logs of a run, of one of its stages, or of one rank."""
    run = find_run(store_path, name)
    stages = [entry.name for entry in run.status().stages]
    if stage and stage not in stages:
        raise NotFound(f"run {run.id} has no stage {stage!r}", remedy=did_you_mean(stage, stages))
    reader = LogReader(run, stage, rank, attempt)
    printed = False
    while follow and run.status().state not in TERMINAL_STATES:
        printed = _print_new_lines(reader) or printed
        time.sleep(POLL_INTERVAL)
    printed = _print_new_lines(reader, last=True) or printed
    if not printed:
        raise NotFound(_describe_missing_log(run, stage, rank))


def _describe_missing_log(run: Run, stage: str | None, rank: int | None) -> str:
    if stage and rank is not None:
        return f"stage {stage} of run {run.id} has no log of rank {rank}"
    if stage:
        return f"stage {stage} of run {run.id} has no log (cached, or not started)"
    return f"no stage of run {run.id} has a log (all are cached or not started)"


def _print_new_lines(reader: LogReader, last: bool = False) -> bool:
    printed = False
    for line in reader.lines(last):
        sys.stdout.write(line + "\n")
        printed = True
    sys.stdout.flush()
    return printed


@dataclass
class LogReader:
    """Reader of the lines that were appended to a run's log files since the last call."""

    run: Run
    stage: str | None = None
    rank: int | None = None
    attempt: int | None = None
    _offsets: dict[Path, int] = field(default_factory=dict)

    def lines(self, last: bool = False) -> Iterator[str]:
        """Yield new complete lines of every file, labelled if there are several files.

        Args:
            last: also yield an incomplete last line.
        """
        for label, path in self.files():
            for line in self._new_lines(path, last):
                yield f"{label} | {line}" if label else line

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield the selected files, each with its label; a single file has none."""
        for folder in self._stages():
            found = self._attempts(folder)
            for attempt in found if self.attempt else found[-1:]:
                for path in self._logs(attempt):
                    rank = "" if path.name == "log.txt" else path.stem
                    stage = "" if self.stage else folder.name
                    single = self.rank is not None and self.stage
                    yield "" if single else " ".join(w for w in (stage, rank) if w), path

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

    def _new_lines(self, path: Path, last: bool) -> Iterator[str]:
        with path.open("rb") as file:
            file.seek(self._offsets.get(path, 0))
            appended = file.read()
        complete = len(appended) if last else appended.rfind(b"\n") + 1
        self._offsets[path] = self._offsets.get(path, 0) + complete
        for line in appended[:complete].decode(errors="replace").splitlines():
            yield escape_control_characters(line)
