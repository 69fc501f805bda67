"""Between two batches of something long: a sign of life, and a look at whether to stop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import Interrupted

if TYPE_CHECKING:
    from stages.training.ranks.rank import Rank


class Pause:
    """Called between batches: `pause()`.

    Only rank 0 has a context. It stops alone, and its group ends the others; ranks whose work does
    not hang on its own are given the file whose existence asks the run to stop.
    """

    def __init__(self, rank: Rank, cancel_file: Path | None = None, *, grace: float = 0.0) -> None:
        """`grace`: seconds to go on after a stop was asked for, in which the work may come to a
        better place to stop at."""
        self._rank = rank
        self._file = rank.ctx.cancel_file if rank.ctx else cancel_file
        self._grace = grace
        self._asked: float | None = None

    def __call__(self) -> None:
        """Go on, or stop.

        Raises:
            Interrupted: somebody asked the run to stop, and the time of grace is over.
        """
        self._rank.beat()
        if self._file is None or not self._file.exists():
            return
        now = time.monotonic()
        self._asked = now if self._asked is None else self._asked
        if now - self._asked >= self._grace:
            where = self._rank.ctx.stage if self._rank.ctx else ""
            raise Interrupted("stopped on request", where=where)
