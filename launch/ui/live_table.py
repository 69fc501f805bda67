"""Live display of a run: one row per stage with progress bar, loss, rate and remaining time.

It reads the journal and the stages' progress files, so the same display serves `run`, `submit` and
`status --watch`. On a terminal it redraws a table; in a pipe or a log it prints one line per event
and one line per running stage every few seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from launch.ui import console, formatting
from pipeline.errors import HeadwaterError
from pipeline.redaction import escape_control_characters
from pipeline.status import COMPLETED_STATES

if TYPE_CHECKING:
    from pipeline.execution.run import Run
    from pipeline.status import RunStatus, StageStatus

REDRAW_INTERVAL = 0.5  # seconds
LINE_INTERVAL = 5.0  # seconds between two lines of a running stage
RATE_WINDOW = 60.0  # seconds
_UNITS = {"tokens": "tok", "samples": "smp", "documents": "doc", "sequences": "seq"}


@dataclass
class RateEstimator:
    """Rates of the stages over the last minute, from observed progress; a resumed stage starts
    anew."""

    _points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def rate(self, stage: str, progress: Mapping[str, Any]) -> float | None:
        """Return units per second over the last minute; None before two different observations."""
        now, done = progress.get("time"), progress.get("done")
        if now is None or done is None:
            return None
        points = self._points.setdefault(stage, [])
        if points and done < points[-1][1]:
            points.clear()
        if not points or now > points[-1][0]:
            points.append((now, done))
        while len(points) > 2 and now - points[1][0] > RATE_WINDOW:
            points.pop(0)
        (start, first), (end, last) = points[0], points[-1]
        return (last - first) / (end - start) if end > start and last > first else None

    def remaining(self, stage: str, progress: Mapping[str, Any]) -> float | None:
        """Return the seconds until the stage is done at the current rate; None if unknown."""
        rate = self.rate(stage, progress)
        total = progress.get("total")
        if not rate or total is None:
            return None
        return max(0.0, float(total - progress["done"]) / rate)


def format_progress(progress: Mapping[str, Any]) -> str:
    """Return progress as `312/600 steps`."""
    if progress.get("done") is None:
        return ""
    total = f"/{_format_count(progress['total'])}" if progress.get("total") else ""
    return f"{_format_count(progress['done'])}{total} {progress.get('unit', '')}".rstrip()


def _format_count(number: float) -> str:
    """Return a count in full up to 100,000 and with a unit prefix above."""
    return f"{number:.0f}" if number < 100_000 else formatting.number(number)


def format_loss(progress: Mapping[str, Any]) -> str:
    """Return the reward, else the loss, of a progress record."""
    for name in ("reward", "loss"):
        if name in progress:
            value = progress[name]
            return f"{name} {formatting.DASH if value is None else format(value, '.3f')}"
    return ""


def format_rate(progress: Mapping[str, Any], rate: float | None) -> str:
    """Return the rate that the stage reports (`tokens_per_second`), else the observed one."""
    for name, value in progress.items():
        if name.endswith("_per_second") and value is not None:
            unit = name.removesuffix("_per_second")
            return f"{formatting.number(value)} {_UNITS.get(unit, unit)}/s"
    if rate is None:
        return ""
    unit = str(progress.get("unit", ""))
    return f"{formatting.number(rate)} {_UNITS.get(unit, unit)}/s"


class StatusTable:
    """Table of a run's status."""

    def __init__(self, rates: RateEstimator | None = None) -> None:
        self.rates = rates or RateEstimator()

    def draw(self, status: RunStatus, width: int, footer: str = "") -> Group:
        """Return the table, at most `width` columns wide."""
        table = Table.grid(padding=(0, 2, 0, 0))
        for justify in ("left", "left", "left", "left", "right", "right"):
            table.add_column(justify=justify, no_wrap=True, overflow="ellipsis")
        table.columns[0].min_width = 2 + max((len(s.name) for s in status.stages), default=0)
        for stage in status.stages:
            table.add_row(*self._row(stage, width < console.NARROW))
        parts: list[Any] = [self._title(status), Padding(table, (0, 0, 0, 2), expand=False)]
        return Group(*parts, *([console.plain_text(footer, style="magenta")] if footer else []))

    def _title(self, status: RunStatus) -> Text:
        done = sum(stage.state in COMPLETED_STATES for stage in status.stages)
        return console.plain_text(
            (status.pipeline, "bold"),
            ("  ", ""),
            (status.run, "cyan"),
            (f"  {done}/{len(status.stages)} stages  ", "dim"),
            console.format_state(status.state),
        )

    def _row(self, stage: StageStatus, narrow: bool) -> list[Any]:
        style = console.STYLES.get(stage.state, "")
        name = console.plain_text((console.MARKS.get(stage.state, "·"), style), " ", stage.name)
        if stage.state != "running":
            return [name, Text(stage.state, style), *self._idle(stage, narrow)]
        return [name, *self._running(stage, narrow)]

    def _idle(self, stage: StageStatus, narrow: bool) -> list[Any]:
        """Return the cells of a stage that is not running: its first metric and its time, or the
        reason why it waits."""
        if stage.state in COMPLETED_STATES:
            metric = console.format_metrics(stage.metrics, stage.kind, 1)
            took = formatting.duration(stage.seconds)
            return [console.plain_text((metric, "dim")), "", "", Text(took, "dim")]
        reason = stage.reason if stage.state in ("waiting", "interrupted") else ""
        if len(reason) > (limit := 20 if narrow else 48):
            reason = reason[: limit - 1] + "…"
        return [console.plain_text((reason, "dim")), "", "", ""]

    def _running(self, stage: StageStatus, narrow: bool) -> list[Any]:
        progress = stage.progress
        rate = self.rates.rate(stage.name, progress)
        left = self.rates.remaining(stage.name, progress)
        gauge: Any = Text("starting" if not progress else "running", "yellow")
        done, total = progress.get("done"), progress.get("total")
        if done is not None and (total or 0) > 0:
            share = min(1.0, max(0.0, done / total))
            gauge = ProgressBar(total=1.0, completed=share, width=8 if narrow else 24)
        time_left = formatting.duration(left)
        if time_left:
            time_left = f"~{time_left}" if narrow else f"{time_left} left"
        return [
            gauge,
            console.plain_text(format_progress(progress)),
            Text(format_loss(progress), "bold"),
            console.plain_text((format_rate(progress, rate), "dim")),
            Text(time_left),
        ]


class StatusLines:
    """Changes of a run's status since the last call, as lines of text."""

    def __init__(self) -> None:
        self.rates = RateEstimator()
        self._states: dict[str, str] = {}
        self._printed_at: dict[str, float] = {}

    def lines(self, status: RunStatus, now: float) -> Iterator[str]:
        """Yield new states at once, and the progress of running stages every few seconds."""
        wide = max((len(stage.name) for stage in status.stages), default=0)
        for stage in status.stages:
            changed = self._states.get(stage.name) != stage.state
            self._states[stage.name] = stage.state
            if changed and stage.state not in ("pending", "skipped"):
                self._printed_at[stage.name] = now
                line = f"{stage.name:<{wide}}  {self._idle(stage)}".rstrip()
                yield escape_control_characters(line)
            elif stage.state == "running" and stage.progress:
                text = self._running(stage)
                if now - self._printed_at.get(stage.name, 0.0) >= LINE_INTERVAL:
                    self._printed_at[stage.name] = now
                    yield escape_control_characters(f"{stage.name:<{wide}}  {text}")

    def _idle(self, stage: StageStatus) -> str:
        seconds = formatting.duration(stage.seconds) if stage.state in COMPLETED_STATES else ""
        metrics = (
            console.format_metrics(stage.metrics, stage.kind) if stage.state == "finished" else ""
        )
        reason = stage.reason if stage.state in ("waiting", "failed", "interrupted") else ""
        return "  ".join(part for part in (f"{stage.state:<11}", seconds, metrics, reason) if part)

    def _running(self, stage: StageStatus) -> str:
        progress = stage.progress
        left = self.rates.remaining(stage.name, progress)
        parts = (
            f"{format_progress(progress):<18}",
            format_loss(progress),
            format_rate(progress, self.rates.rate(stage.name, progress)),
            f"{formatting.duration(left)} left" if left is not None else "",
        )
        return "  ".join(part for part in parts if part)


def run_note(run: Run, status: RunStatus) -> str:
    """Return a note that the run is being stopped or finalized; empty otherwise."""
    if status.state in ("finished", "failed", "refused"):
        return "writing the report and sending the rest to MLflow"
    try:
        request = run.cancel_file.read_text(errors="replace")
    except OSError:
        return ""
    if "now" in request:
        return "stopping now"
    return "stopping at the next checkpoint (within 30 s); Ctrl-C again stops now"


@contextmanager
def show_live(run: Run) -> Iterator[None]:
    """Display the run while the block executes it; display errors do not affect the run."""
    done = threading.Event()
    watcher = threading.Thread(
        target=_watch_safely, args=(run, done.wait), name="live table", daemon=True
    )
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join(5.0)


def watch(run: Run, ended: Callable[[float], bool], note: Callable[[], str] = lambda: "") -> None:
    """Display the run until it ends.

    Args:
        ended: waits that many seconds and returns whether the run is over.
        note: returns a line to print under the table.
    """
    if console.get_console().is_terminal:
        _redraw(run, ended, note)
    else:
        _print_lines(run, ended, note)


def _watch_safely(run: Run, ended: Callable[[float], bool]) -> None:
    with suppress(OSError, HeadwaterError, ValueError):
        watch(run, ended)


def _redraw(run: Run, ended: Callable[[float], bool], note: Callable[[], str]) -> None:
    screen, table = console.get_console(), StatusTable()

    def draw() -> Group:
        status = run.status()
        return table.draw(status, screen.width, note() or run_note(run, status))

    with Live(draw(), console=screen, auto_refresh=False, transient=False) as live:
        while not ended(REDRAW_INTERVAL):
            live.update(draw(), refresh=True)
        live.update(table.draw(run.status(), screen.width), refresh=True)


def _print_lines(run: Run, ended: Callable[[float], bool], note: Callable[[], str]) -> None:
    status_lines, previous = StatusLines(), ""
    over = False
    while not over:
        over = ended(REDRAW_INTERVAL)
        status = run.status()
        for line in status_lines.lines(status, time.monotonic()):
            console.echo(f"{time.strftime('%H:%M:%S')}  {line}")
        footer = "" if over else note() or run_note(run, status)
        if footer and footer != previous:
            console.echo(f"{time.strftime('%H:%M:%S')}  {footer}")
        previous = footer
