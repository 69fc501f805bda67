"""Detects stalled ranks from their progress counters (pure, no I/O).

Every rank reports its counters and its median step time (`rank.RankProgress`) twice per second. A
group makes progress while every rank whose reply is pending does something, or reports that it
waits. When one stands still for longer than the timeout, the stalled rank is one that reports
nothing at all (stopped, swapped out), or else the one that has done least: its peers only wait for
it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.stage import Section

SILENCE_LIMIT = 5.0
"""Seconds without a report, due twice per second, after which a rank counts as silent."""


class WatchdogSection(Section):
    """Time without progress after which a group of ranks counts as stuck."""

    renamed: ClassVar[Mapping[str, str]] = {
        "factor": "timeout_factor",
        "floor": "min_timeout",
        "start": "startup_timeout",
    }

    timeout_factor: Annotated[float, Field(gt=1)] = 20
    """Timeout, median step times. Default: 20."""
    min_timeout: Annotated[float, Field(gt=0)] = 120
    """Smallest timeout after the first step, seconds. Default: 120."""
    startup_timeout: Annotated[float, Field(gt=0)] = 900
    """Timeout until the first step is done (imports, data, compilation), seconds. Default: 900."""


@dataclass
class _Progress:
    count: int = 0
    waits: int = 0
    step_seconds: float = 0.0
    progressed_at: float = 0.0
    reported_at: float = 0.0


class Watchdog:
    """Monitor of the counters of the ranks whose reply is pending."""

    def __init__(
        self,
        ranks: Iterable[int],
        limits: WatchdogSection,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._clock = clock
        now = clock()
        self._ranks = {rank: _Progress(progressed_at=now, reported_at=now) for rank in ranks}

    def report(self, rank: int, count: int, waits: int, step_seconds: float) -> None:
        """Record the counters of a rank: units of work, waits, and the median step time in seconds
        (0 before the first step)."""
        if rank not in self._ranks:
            return
        progress = self._ranks[rank]
        progress.reported_at = self._clock()
        if (count, waits) != (progress.count, progress.waits):
            progress.count, progress.waits = count, waits
            progress.progressed_at = progress.reported_at
        progress.step_seconds = step_seconds

    def release(self, rank: int) -> None:
        """Stop watching a rank, because it has replied."""
        self._ranks.pop(rank, None)

    @property
    def timeout(self) -> float:
        """Return the seconds without progress that are allowed now."""
        # One rank that has made a step is enough: its peers may be stuck before they report theirs.
        slowest = max((progress.step_seconds for progress in self._ranks.values()), default=0.0)
        if not slowest:
            return self._limits.startup_timeout
        return max(self._limits.min_timeout, self._limits.timeout_factor * slowest)

    def stall(self) -> str:
        """Return which ranks are stalled, and for how long; empty while the group progresses."""
        now, ranks = self._clock(), self._ranks
        idle = max((now - progress.progressed_at for progress in ranks.values()), default=0.0)
        if idle <= self.timeout:
            return ""
        silent = [r for r, progress in ranks.items() if now - progress.reported_at > SILENCE_LIMIT]
        if silent:
            return f"{_names(silent)} made no progress for {idle:.0f} s and does not answer"
        least = min(progress.count for progress in ranks.values())
        behind = [rank for rank, progress in ranks.items() if progress.count == least]
        return f"{_names(behind)} made no progress for {idle:.0f} s"


def _names(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
