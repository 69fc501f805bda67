"""The reporting interface of a running stage: progress, series, results, panels, a log.

All of it is written to files with one writer (the stage) and any number of readers (the live table,
the report, the MLflow mirror), so that nothing is lost with a process and a report costs
microseconds:

    <work>/out/                     becomes the artifact
    <work>/scratch/                 survives kills, is never published
    <work>/observed/progress.json   the newest progress
    <work>/observed/metrics.jsonl   {"step", "time", values…, "crc32"}, a line per call of `metrics`
    <work>/observed/panels.json     the panels of the report
    <work>/observed/results.json    final metrics (the manifest's `metrics`)
    <work>/reported.json            panels and metrics so far, for the next attempt
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.atomic_io import NOT_FOUND, complete_lines_size, disk_errors, read_lines, write_atomic
from pipeline.checksum import parse_record, with_checksum
from pipeline.errors import Interrupted
from pipeline.panels import Panel
from pipeline.plain_data import read_numbers, to_json, to_plain
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
    """Names of environment variables whose values reach neither a log nor `observed/`."""
    externals: Mapping[str, str] = field(default_factory=dict)
    """The result of `Params.externals` when the stage was planned; part of its identity."""
    _last_progress: float = field(default=-math.inf, repr=False)
    _results: dict[str, float | None] = field(default_factory=dict, repr=False)
    _panels: list[Panel] = field(default_factory=list, repr=False)
    _repaired: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        for folder in (self.out, self.scratch, self.observed, self.attempt_dir, self.cache):
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
        with suppress(*NOT_FOUND, ValueError):  # a damaged file counts as none
            reported = parse_record((self.work / "reported.json").read_bytes())
            self._results.update(read_numbers(reported["results"]))
            self._panels += reported["panels"]

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
        self._write("progress.json", line)

    def resume_point(self, step: int, total: int) -> None:
        """Record that the stage would resume at `step` after a kill (for `headwater plan`)."""
        self._write("resume.json", {"step": step, "total": total})

    def metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        """Append one point to the stage's metric series."""
        point = to_plain({"step": step, "time": time.time(), **values}, self.secrets)
        line = to_json(with_checksum(point))
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
        kept = [to_json(with_checksum(p)) for p in read_series(self._series) if p["step"] <= step]
        write_atomic(self._series, "".join(f"{line}\n" for line in kept), durable=False)

    def result(self, **values: float | None) -> None:
        """Set final metrics; gates, tables and comparisons read them as `<stage>.<name>`.

        A metric without a value is None; NaN and infinity count as such.

        Raises:
            TypeError, ValueError: a value is not a number.
        """
        real = {k: float(v) if not isinstance(v, int | None) else v for k, v in values.items()}
        self._results.update(read_numbers(real))
        self._write("results.json", dict(sorted(self._results.items())))
        self._keep_reported()

    def panel(self, panel: Panel) -> None:
        """Add a panel to the report (see `pipeline.panels`), or replace the one of that title."""
        self._panels = [old for old in self._panels if old["title"] != panel["title"]] + [panel]
        self._write("panels.json", self._panels)
        self._keep_reported()

    def _keep_reported(self) -> None:
        """Keep results and panels, with a checksum, for the next attempt."""
        reported = to_plain({"results": self._results, "panels": self._panels}, self.secrets)
        write_atomic(self.work / "reported.json", to_json(with_checksum(reported)), durable=False)

    def _write(self, name: str, data: Any) -> None:
        """Write a file of `observed/`: atomic, but not durable, because it can be regenerated."""
        write_atomic(self.observed / name, to_json(data, self.secrets), durable=False)

    def log(self, message: str) -> None:
        """Write one line to the attempt's log."""
        line = escape_control_characters(redact(message, self.secrets))
        with (self.attempt_dir / "log.txt").open("a") as log:
            log.write(f"{time.strftime('%H:%M:%S')} {line}\n")


def read_series(path: Path) -> list[dict[str, Any]]:
    """Return the points of a series file; a torn last line (a kill) is left out."""
    return [point for line in read_lines(path) if (point := read_point(line))]


def read_point(line: bytes) -> dict[str, Any]:
    """Return a point of a series, a number or None per key; empty for a damaged line."""
    with suppress(ValueError, AttributeError, RecursionError):
        point = read_numbers(parse_record(line))
        return point if point.get("step") is not None else {}
    return {}
