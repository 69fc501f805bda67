"""The reporting interface of a running stage: progress, series, results, panels, a log.

All of it is written to files with one writer (the stage) and any number of readers (the live table,
the report, the MLflow mirror), so that nothing is lost with a process and a report costs
microseconds:

    <work>/out/                     becomes the artifact
    <work>/scratch/                 survives kills, is never published
    <work>/observed/progress.json   the newest progress
    <work>/observed/metrics.jsonl   {"step", "time", values…}, one line per call of `metrics`
    <work>/observed/panels.json     the panels of the report
    <work>/observed/results.json    final metrics (the manifest's `metrics`)
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

from pipeline.atomic_io import complete_lines_size, disk_errors, read_json, read_lines, write_atomic
from pipeline.errors import Interrupted
from pipeline.panels import Panel
from pipeline.redaction import escape_control_characters, redact

PROGRESS_INTERVAL = 0.2  # seconds between two writes of the progress


@dataclass
class Context:
    """The reporting interface of a running stage."""

    work: Path
    """The stage's folder, with out/, scratch/ and observed/."""
    attempt_dir: Path
    """The attempt's folder in the run: log.txt, rank logs, stack dumps."""
    cancel_file: Path
    """A file whose existence stops the stage at the next safe point."""
    cache: Path
    """A folder of the store for files that any stage can make again."""
    run_id: str = "local"
    stage: str = "stage"
    attempt: int = 1
    secrets: frozenset[str] = frozenset()
    """Names of environment variables whose values never reach a log."""
    externals: Mapping[str, str] = field(default_factory=dict)
    """The result of `Params.externals` when the stage was planned; part of its identity."""
    _last_progress: float = field(default=-math.inf, repr=False)
    _results: dict[str, float] = field(default_factory=dict, repr=False)
    _panels: list[Panel] = field(default_factory=list, repr=False)
    _repaired: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        for folder in (self.out, self.scratch, self.observed, self.attempt_dir, self.cache):
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
        self._results.update(read_json(self.observed / "results.json", {}))
        self._panels += read_json(self.observed / "panels.json", [])

    @classmethod
    def local(cls, folder: Path) -> Context:
        """Create a context for a call outside any run, with everything under `folder`."""
        folder = Path(folder)
        return cls(folder, folder / "attempt-1", folder / "cancel", folder / "cache")

    @property
    def out(self) -> Path:
        """The folder that becomes the artifact."""
        return self.work / "out"

    @property
    def scratch(self) -> Path:
        """The folder of unpublished files that survive a kill: checkpoints, finished shards."""
        return self.work / "scratch"

    @property
    def observed(self) -> Path:
        """The folder of series and panels: published with the artifact, not part of its digest."""
        return self.work / "observed"

    @property
    def cancelled(self) -> bool:
        """True once the run is asked to stop."""
        with suppress(OSError):  # checked again at the next safe point
            return self.cancel_file.exists()
        return False

    def check_cancelled(self) -> None:
        """Raise if the run is asked to stop.

        Raises:
            Interrupted: the run was cancelled or interrupted.
        """
        if self.cancelled:
            raise Interrupted("stopped on request", where=self.stage)

    def progress(
        self, done: float, total: float | None = None, unit: str = "", **rates: float
    ) -> None:
        """Report progress, `done` of `total` in `unit`, with rates to show live."""
        now = time.monotonic()
        if now - self._last_progress < PROGRESS_INTERVAL and done != total:
            return
        self._last_progress = now
        line = {"done": done, "total": total, "unit": unit, "time": time.time(), **rates}
        _write(self.observed / "progress.json", json.dumps(_finite(line)))

    def resume_point(self, step: int, total: int) -> None:
        """Record that the stage would resume at `step` after a kill (for `headwater plan`)."""
        _write(self.observed / "resume.json", json.dumps({"step": step, "total": total}))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append one point to the stage's metric series."""
        line = json.dumps(_finite({"step": step, "time": time.time(), **values}))
        if not self._repaired and self._series.exists():  # a kill may have left a part of a line
            os.truncate(self._series, complete_lines_size(self._series))
        self._repaired = True
        with self._series.open("a") as series:
            series.write(line + "\n")

    @property
    def _series(self) -> Path:
        return self.observed / "metrics.jsonl"

    def truncate_series(self, step: int) -> None:
        """Remove the points after `step`, because the work continues from there."""
        kept = [point for point in read_series(self._series) if point["step"] <= step]
        _write(self._series, "".join(json.dumps(point) + "\n" for point in kept))

    def result(self, **values: float) -> None:
        """Set final metrics; gates, tables and comparisons read them as `<stage>.<name>`."""
        self._results.update({name: float(value) for name, value in values.items()})
        _write(self.observed / "results.json", json.dumps(_finite(self._results), sort_keys=True))

    def panel(self, panel: Panel) -> None:
        """Add a panel to the report (see `pipeline.panels`), or replace the one of that title."""
        self._panels = [old for old in self._panels if old["title"] != panel["title"]] + [panel]
        _write(self.observed / "panels.json", json.dumps(self._panels))

    def log(self, message: str) -> None:
        """Write one line to the attempt's log."""
        line = escape_control_characters(redact(message, self.secrets))
        with (self.attempt_dir / "log.txt").open("a") as log:
            log.write(f"{time.strftime('%H:%M:%S')} {line}\n")


def read_series(path: Path) -> list[dict[str, Any]]:
    """Return the points of a series file; a torn last line (a kill) is left out."""
    lines = []
    for line in read_lines(path):
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace non-finite floats by their names, because JSON has none."""
    return {
        key: repr(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }


def _write(path: Path, text: str) -> None:
    """Write a file that can be regenerated: atomic, but not durable."""
    write_atomic(path, text, durable=False)
