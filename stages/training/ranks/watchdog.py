"""Who is stuck: a pure judgement of what ranks show of themselves.

Every rank shows its counters and its median step time (`rank.Pulse`), some times a second. A
group makes progress while every rank that still owes an answer does something, or waits where it
says so. When one stands still for longer than is usual, the rank to blame is one that shows
nothing at all any more (stopped, swapped out), else the one that has done least: its peers only
wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from stages.training.training_params import WatchdogSection

SILENT = 5.0
"""Seconds without a sign of a process, which shows one twice a second, that make it suspect."""


@dataclass
class _Seen:
    count: int = 0
    waits: int = 0
    step_seconds: float = 0.0
    grew: float = 0.0
    shown: float = 0.0


class Watchdog:
    """Watches the counters of the ranks that are waited for."""

    def __init__(
        self,
        ranks: Iterable[int],
        limits: WatchdogSection,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._seen = {rank: _Seen(grew=clock(), shown=clock()) for rank in ranks}

    def show(self, rank: int, count: int, waits: int, step_seconds: float) -> None:
        """A rank shows how often it did something, how often it said that it waits, and the
        median of its step times (0 before the first step)."""
        if rank not in self._seen:
            return
        seen = self._seen[rank]
        seen.shown = self._clock()
        if (count, waits) != (seen.count, seen.waits):
            seen.count, seen.waits, seen.grew = count, waits, seen.shown
        seen.step_seconds = step_seconds

    def release(self, rank: int) -> None:
        """A rank has answered: it may rest from now on."""
        self._seen.pop(rank, None)

    @property
    def allowed(self) -> float:
        """Seconds without progress that are still usual."""
        usual = [seen.step_seconds for seen in self._seen.values()]
        # One that has made a step is enough: its peers may be stuck before they could show theirs.
        slowest = max(usual, default=0.0)
        if not slowest:
            return self._limits.startup_timeout
        return max(self._limits.min_timeout, self._limits.timeout_factor * slowest)

    def verdict(self) -> str:
        """Who is stuck and since when; empty while all is well."""
        now = self._clock()
        still = max((now - seen.grew for seen in self._seen.values()), default=0.0)
        if still <= self.allowed:
            return ""
        silent = [rank for rank, seen in self._seen.items() if now - seen.shown > SILENT]
        if silent:
            return f"{_ranks(silent)} made no progress for {still:.0f} s and does not answer"
        least = min(seen.count for seen in self._seen.values())
        behind = [rank for rank, seen in self._seen.items() if seen.count == least]
        return f"{_ranks(behind)} made no progress for {still:.0f} s"


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
