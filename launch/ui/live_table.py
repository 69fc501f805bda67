"""A run as it goes: one row a stage with its own bar, loss, rate and time left.

Reads what every other reader reads, the journal and the stages' progress files, so the same
table serves `run`, `submit` and `status --watch`. On a terminal it redraws itself; in a pipe or a
log it becomes one line an event and one line a running stage every few seconds.
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

if TYPE_CHECKING:
    from pipeline.execution.run import Run
    from pipeline.status import RunStatus, StageStatus

REDRAW = 0.5  # seconds
LINES_EVERY = 5.0  # seconds between two plain lines of one running stage
_UNITS = {"tokens": "tok", "samples": "smp", "documents": "doc", "sequences": "seq"}


@dataclass
class RateEstimator:
    """How fast each stage goes, from what was seen of it; a resumed stage starts afresh."""

    _points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def rate(self, stage: str, progress: Mapping[str, Any]) -> float | None:
        """Units a second over the last minute; None until two different points were seen."""
        now, done = progress.get("time"), progress.get("done")
        if now is None or done is None:
            return None
        now, done = float(now), float(done)
        points = self._points.setdefault(stage, [])
        if points and done < points[-1][1]:
            points.clear()
        if not points or now > points[-1][0]:
            points.append((now, done))
        while len(points) > 2 and now - points[1][0] > 60:
            points.pop(0)
        (start, first), (end, last) = points[0], points[-1]
        return (last - first) / (end - start) if end > start and last > first else None

    def left(self, stage: str, progress: Mapping[str, Any]) -> float | None:
        """Seconds until the stage is done, if it goes on like this."""
        rate = self.rate(stage, progress)
        total = progress.get("total")
        if not rate or total is None:
            return None
        return max(0.0, float(total - progress["done"]) / rate)


def format_progress(progress: Mapping[str, Any]) -> str:
    """`312/600 steps`."""
    if progress.get("done") is None:
        return ""
    total = f"/{_exact(progress['total'])}" if progress.get("total") else ""
    return f"{_exact(progress['done'])}{total} {progress.get('unit', '')}".rstrip()


def _exact(number: float) -> str:
    """Steps are counted, tokens are measured."""
    return f"{number:.0f}" if number < 100_000 else formatting.number(number)


def format_loss(progress: Mapping[str, Any]) -> str:
    """The figure that people watch: the loss, or the reward where there is one."""
    for name in ("reward", "loss"):
        if isinstance(value := progress.get(name), int | float):
            return f"{name} {value:.3f}"
    return ""


def format_rate(progress: Mapping[str, Any], rate: float | None) -> str:
    """What the stage says of its speed (`tokens_per_second`), else what was seen of it."""
    for name, value in progress.items():
        if name.endswith("_per_second") and isinstance(value, int | float):
            unit = name.removesuffix("_per_second")
            return f"{formatting.number(value)} {_UNITS.get(unit, unit)}/s"
    if rate is None:
        return ""
    unit = str(progress.get("unit", ""))
    return f"{formatting.number(rate)} {_UNITS.get(unit, unit)}/s"


class StatusTable:
    """Draws a run's status; remembers only how fast things went."""

    def __init__(self, rates: RateEstimator | None = None) -> None:
        self.rates = rates or RateEstimator()

    def draw(self, status: RunStatus, width: int, footer: str = "") -> Group:
        """The whole picture, no wider than `width` columns."""
        table = Table.grid(padding=(0, 2, 0, 0))
        for justify in ("left", "left", "left", "left", "right", "right"):
            table.add_column(justify=justify, no_wrap=True, overflow="ellipsis")
        table.columns[0].min_width = 2 + max((len(s.name) for s in status.stages), default=0)
        for stage in status.stages:
            table.add_row(*self._row(stage, width < console.NARROW))
        parts: list[Any] = [self._title(status), Padding(table, (0, 0, 0, 2), expand=False)]
        return Group(*parts, *([Text(footer, style="magenta")] if footer else []))

    def _title(self, status: RunStatus) -> Text:
        done = sum(stage.state in ("cached", "finished") for stage in status.stages)
        return Text.assemble(
            (status.pipeline, "bold"),
            ("  ", ""),
            (status.run, "cyan"),
            (f"  {done}/{len(status.stages)} stages  ", "dim"),
            console.format_state(status.state),
        )

    def _row(self, stage: StageStatus, narrow: bool) -> list[Any]:
        style = console.STYLES.get(stage.state, "")
        name = Text.assemble((console.MARKS.get(stage.state, "·"), style), " ", stage.name)
        if stage.state != "running":
            return [name, Text(stage.state, style), *self._settled(stage, narrow)]
        return [name, *self._running(stage, narrow)]

    def _settled(self, stage: StageStatus, narrow: bool) -> list[Any]:
        """A stage that stands still: what it reached, and what it took."""
        if stage.state in ("cached", "finished"):
            seen, took = (
                console.format_metrics(stage.metrics, 1),
                formatting.duration(stage.seconds),
            )
            return [Text(seen, "dim"), "", "", Text(took, "dim")]
        told = stage.state in ("waiting", "interrupted")
        reason = console.escape_lines(stage.reason) if told else ""
        if len(reason) > (most := 20 if narrow else 48):
            reason = reason[: most - 1] + "…"
        return [Text(reason, "dim"), "", "", ""]

    def _running(self, stage: StageStatus, narrow: bool) -> list[Any]:
        progress = stage.progress
        rate = self.rates.rate(stage.name, progress)
        left = self.rates.left(stage.name, progress)
        gauge: Any = Text("starting" if not progress else "running", "yellow")
        if progress.get("total"):
            gauge = ProgressBar(
                total=progress["total"], completed=progress["done"], width=8 if narrow else 24
            )
        time_left = formatting.duration(left)
        if time_left:
            time_left = f"~{time_left}" if narrow else f"{time_left} left"
        return [
            gauge,
            Text(format_progress(progress)),
            Text(format_loss(progress), "bold"),
            Text(format_rate(progress, rate), "dim"),
            Text(time_left),
        ]


class StatusLines:
    """The same for a file: what changed since the last look, as lines."""

    def __init__(self) -> None:
        self.rates = RateEstimator()
        self._states: dict[str, str] = {}
        self._printed_at: dict[str, float] = {}

    def lines(self, status: RunStatus, now: float) -> Iterator[str]:
        """New states at once; progress of what runs every few seconds."""
        wide = max((len(stage.name) for stage in status.stages), default=0)
        for stage in status.stages:
            moved = self._states.get(stage.name) != stage.state
            self._states[stage.name] = stage.state
            if moved and stage.state not in ("pending", "skipped"):
                self._printed_at[stage.name] = now
                yield f"{stage.name:<{wide}}  {self._settled(stage)}".rstrip()
            elif stage.state == "running" and stage.progress:
                text = self._running(stage)
                if now - self._printed_at.get(stage.name, 0.0) >= LINES_EVERY:
                    self._printed_at[stage.name] = now
                    yield f"{stage.name:<{wide}}  {text}"

    def _settled(self, stage: StageStatus) -> str:
        took = formatting.duration(stage.seconds) if stage.state in ("cached", "finished") else ""
        figures = console.format_metrics(stage.metrics) if stage.state == "finished" else ""
        reason = stage.reason if stage.state in ("waiting", "failed", "interrupted") else ""
        return "  ".join(part for part in (f"{stage.state:<11}", took, figures, reason) if part)

    def _running(self, stage: StageStatus) -> str:
        progress = stage.progress
        left = self.rates.left(stage.name, progress)
        parts = (
            f"{format_progress(progress):<18}",
            format_loss(progress),
            format_rate(progress, self.rates.rate(stage.name, progress)),
            f"{formatting.duration(left)} left" if left is not None else "",
        )
        return "  ".join(part for part in parts if part)


def run_note(run: Run, status: RunStatus) -> str:
    """What is going on beside the stages: the run is being stopped, or wound up."""
    if status.state in ("finished", "failed", "refused"):
        return "writing the report, sending the rest to MLflow"
    try:
        word = run.cancel_file.read_text()
    except OSError:
        return ""
    if "now" in word:
        return "stopping now"
    return "stopping at the next safe point (30 s at most); Ctrl-C again stops now"


@contextmanager
def show_live(run: Run) -> Iterator[None]:
    """Show the run while the block carries it out; showing can neither fail nor slow it."""
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
    """Show the run until `ended(seconds)`, which waits that long, says that it is over.

    Args:
        note: what else is worth a line under the table.
    """
    if console.get_console().is_terminal:
        _redraw(run, ended, note)
    else:
        _print_lines(run, ended, note)


def _watch_safely(run: Run, ended: Callable[[float], bool]) -> None:
    with suppress(OSError, HeadwaterError, ValueError):
        watch(run, ended)


def _redraw(run: Run, ended: Callable[[float], bool], note: Callable[[], str]) -> None:
    screen, board = console.get_console(), StatusTable()

    def picture() -> Group:
        status = run.status()
        return board.draw(status, screen.width, note() or run_note(run, status))

    with Live(picture(), console=screen, auto_refresh=False, transient=False) as live:
        while not ended(REDRAW):
            live.update(picture(), refresh=True)
        live.update(board.draw(run.status(), screen.width), refresh=True)


def _print_lines(run: Run, ended: Callable[[float], bool], note: Callable[[], str]) -> None:
    plain, told = StatusLines(), ""
    over = False
    while not over:
        over = ended(REDRAW)
        status = run.status()
        for line in plain.lines(status, time.monotonic()):
            console.echo(f"{time.strftime('%H:%M:%S')}  {line}")
        footer = "" if over else note() or run_note(run, status)
        if footer and footer != told:
            console.echo(f"{time.strftime('%H:%M:%S')}  {footer}")
        told = footer
