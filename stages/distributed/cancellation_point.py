"""A check between batches of long work: sends a heartbeat and stops the work on cancellation."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

from pipeline.context import Context
from pipeline.errors import Interrupted


class MonitoredProcess(Protocol):
    """The part of `stages.training.ranks.rank.Rank` that is used here."""

    @property
    def ctx(self) -> Context | None:
        """Context of the stage; only rank 0 has one."""

    def heartbeat(self) -> None:
        """Report progress to the watchdog."""


class CancellationPoint:
    """A callable for the gaps between batches: `check = CancellationPoint(rank)`, then `check()`.

    Only rank 0 has a context. It stops alone, and its worker group ends the other ranks. Ranks
    that work independently are given the file whose existence requests cancellation.
    """

    def __init__(
        self, rank: MonitoredProcess, cancel_file: Path | None = None, *, grace: float = 0.0
    ) -> None:
        """Set up the check.

        Args:
            rank: this process.
            cancel_file: file whose existence requests cancellation. Default: that of the context.
            grace: seconds to continue after cancellation was requested, in which the work may
                reach a checkpoint.
        """
        self._rank = rank
        self._file = rank.ctx.cancel_file if rank.ctx else cancel_file
        self._grace = grace
        self._requested_at: float | None = None

    def __call__(self) -> None:
        """Send a heartbeat, and stop if cancellation was requested.

        Raises:
            Interrupted: cancellation was requested, and the grace period is over.
        """
        self._rank.heartbeat()
        if self._file is None or not self._file.exists():
            return
        now = time.monotonic()
        if self._requested_at is None:
            self._requested_at = now
        if now - self._requested_at >= self._grace:
            where = self._rank.ctx.stage if self._rank.ctx else ""
            raise Interrupted("stopped on request", where=where)
