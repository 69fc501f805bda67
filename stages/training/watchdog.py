"""Who is stuck: a pure judgement of what ranks show of themselves.

Every rank shows a counter and its median step time (`rank.Pulse`), some times a second. A group
makes progress while every counter grows. When one stands still for longer than is usual, the
rank to blame is one that shows nothing at all any more (stopped, swapped out), else the one that
is furthest behind: its peers only wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from stages.training.settings import Watchdog as Limits

SILENT = 5.0
"""Seconds without a sign of a process, which shows one twice a second, that make it suspect."""


@dataclass
class _Seen:
    count: int = 0
    step_seconds: float = 0.0
    grew: float = 0.0
    shown: float = 0.0


class Watchdog:
    """Watches the counters of a group."""

    def __init__(
        self, world: int, limits: Limits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._seen = [_Seen(grew=clock(), shown=clock()) for _ in range(world)]

    def show(self, rank: int, count: int, step_seconds: float) -> None:
        """A rank shows its counter and the median of its step times (0 before the first step)."""
        seen = self._seen[rank]
        seen.shown = self._clock()
        if count != seen.count:
            seen.count, seen.grew = count, seen.shown
        seen.step_seconds = step_seconds

    @property
    def allowed(self) -> float:
        """Seconds without progress that are still usual."""
        usual = [seen.step_seconds for seen in self._seen]
        if not min(usual):
            return self._limits.start
        return max(self._limits.floor, self._limits.factor * max(usual))

    def verdict(self) -> str:
        """Who is stuck and since when; empty while all is well."""
        now = self._clock()
        still = max(now - seen.grew for seen in self._seen)
        if still <= self.allowed:
            return ""
        silent = [r for r, seen in enumerate(self._seen) if now - seen.shown > SILENT]
        if silent:
            return f"{_ranks(silent)} made no progress for {still:.0f} s and does not answer"
        least = min(seen.count for seen in self._seen)
        behind = [r for r, seen in enumerate(self._seen) if seen.count == least]
        return f"{_ranks(behind)} made no progress for {still:.0f} s"


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
