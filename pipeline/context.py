"""What a running stage is given to report through: progress, series, results, panels, a log.

All of it lands in files that have one writer (the stage) and any number of readers (the live
table, the report, the MLflow mirror), so that nothing is lost with a process and reporting
costs a stage microseconds:

    <work>/out/                 becomes the artifact
    <work>/scratch/             survives kills, is never published
    <work>/observed/progress.json   the newest progress line
    <work>/observed/metrics.jsonl   {"step", "time", values…}, one line a call of `metrics`
    <work>/observed/panels.json     what the report draws
    <work>/observed/results.json    final figures (the manifest's `metrics`)
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.atomic_io import (
    complete_lines_size,
    disk_errors,
    read_json,
    read_lines,
    write_atomic,
)
from pipeline.errors import Interrupted
from pipeline.panels import Panel
from pipeline.redaction import escape_control_characters, redact

PROGRESS_INTERVAL = 0.2  # seconds: people cannot read faster, and disks need not write faster


@dataclass
class Context:
    """A stage's only way to talk to the outside."""

    work: Path
    """Where the stage works: holds out/, scratch/ and observed/."""
    attempt_dir: Path
    """The attempt's folder of the run: log.txt, rank logs, stack dumps."""
    cancel_file: Path
    """Its existence asks the stage to stop at the next safe point."""
    cache: Path
    """A folder of the store that every stage may keep re-makeable files in."""
    run_id: str = "local"
    stage: str = "stage"
    attempt: int = 1
    secrets: frozenset[str] = frozenset()
    """Names of environment variables whose values never reach a log."""
    externals: Mapping[str, str] = field(default_factory=dict)
    """What the parameters' `externals` said when the stage was planned: part of its identity."""
    _last_progress: float = field(default=-math.inf, repr=False)
    _results: dict[str, float] = field(default_factory=dict, repr=False)
    _panels: list[Panel] = field(default_factory=list, repr=False)
    _mended: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        for folder in (self.out, self.scratch, self.observed, self.attempt_dir, self.cache):
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
        self._results.update(read_json(self.observed / "results.json", {}))
        self._panels += read_json(self.observed / "panels.json", [])

    @classmethod
    def local(cls, folder: Path) -> Context:
        """A context for one call outside any run, all under `folder`."""
        folder = Path(folder)
        return cls(folder, folder / "attempt-1", folder / "cancel", folder / "cache")

    @property
    def out(self) -> Path:
        """What is written here becomes the artifact."""
        return self.work / "out"

    @property
    def scratch(self) -> Path:
        """Unpublished files that survive a kill: checkpoints, finished shards."""
        return self.work / "scratch"

    @property
    def observed(self) -> Path:
        """Series and panels: published beside the artifact, outside its digest."""
        return self.work / "observed"

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked the run to stop, as far as the disk says."""
        with suppress(OSError):  # asked again at the next safe point
            return self.cancel_file.exists()
        return False

    def check_cancelled(self) -> None:
        """Stop here if asked to.

        Raises:
            Interrupted: the run was cancelled or interrupted.
        """
        if self.cancelled:
            raise Interrupted("stopped on request", where=self.stage)

    def progress(
        self, done: float, total: float | None = None, unit: str = "", **rates: float
    ) -> None:
        """Say how far the work is: `done` of `total` in `unit`, with figures worth seeing live."""
        now = time.monotonic()
        if now - self._last_progress < PROGRESS_INTERVAL and done != total:
            return
        self._last_progress = now
        line = {"done": done, "total": total, "unit": unit, "time": time.time(), **rates}
        _note(self.observed / "progress.json", json.dumps(_finite(line)))

    def resume_point(self, step: int, total: int) -> None:
        """Record that a kill from now on resumes at `step` (read by `headwater plan`)."""
        _note(self.observed / "resume.json", json.dumps({"step": step, "total": total}))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append one point of the stage's series."""
        line = json.dumps(_finite({"step": step, "time": time.time(), **values}))
        if not self._mended:
            self._mend()
        with self._series.open("a") as series:
            series.write(line + "\n")

    @property
    def _series(self) -> Path:
        return self.observed / "metrics.jsonl"

    def _mend(self) -> None:
        """Cut off the half of a line that a kill left, or the next point would be lost with it."""
        if self._series.exists():
            os.truncate(self._series, complete_lines_size(self._series))
        self._mended = True

    def truncate_series(self, step: int) -> None:
        """Forget the points after `step`: the work goes on from there and will make them again."""
        kept = [point for point in read_series(self._series) if point["step"] <= step]
        _note(self._series, "".join(json.dumps(point) + "\n" for point in kept))

    def result(self, **values: float) -> None:
        """Set final figures: gates, tables and comparisons read them as `<stage>.<name>`."""
        self._results.update({name: float(value) for name, value in values.items()})
        _note(self.observed / "results.json", json.dumps(_finite(self._results), sort_keys=True))

    def panel(self, panel: Panel) -> None:
        """Add something for people to look at (see `pipeline.panels`)."""
        self._panels = [old for old in self._panels if old["title"] != panel["title"]] + [panel]
        _note(self.observed / "panels.json", json.dumps(self._panels))

    def log(self, message: str) -> None:
        """Write one line to the attempt's log."""
        with (self.attempt_dir / "log.txt").open("a") as log:
            log.write(
                f"{time.strftime('%H:%M:%S')} {escape_control_characters(redact(message, self.secrets))}\n"
            )


def read_series(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a series file; a torn last line (a kill) is left out."""
    lines = []
    for line in read_lines(path):
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: non-finite floats are written as their names."""
    return {
        key: repr(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }


def _note(path: Path, text: str) -> None:
    """Readers see the old text or the new; not durable, for it is re-made."""
    write_atomic(path, text, durable=False)
