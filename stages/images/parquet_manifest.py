"""The rows of parquet manifests, decoded once.

Nothing leads to a row but through those before it in its row group, which may have a million rows
where a piece has a few hundred. Pieces come in order, so the place where one ends is kept for the
next that the process reads: it goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from stages.images.image_sources import Piece
    from stages.images.manifests import Columns

BATCH = 64  # rows that are held: they may hold images
_BUFFER = 1 << 20  # bytes of a column that are read at a time, instead of its whole row group

Key = tuple[str, int, int, "Columns"]


class Cursor:
    """A file that is read forward from the row group of row `start` on.

    Raises:
        pa.ArrowException, OSError: the file is damaged, or cannot be opened.
        InputError: it lacks a column.
    """

    def __init__(self, path: str, columns: Columns, start: int) -> None:
        file = pq.ParquetFile(path, buffer_size=_BUFFER)
        names = tuple(file.schema_arrow.names)
        self.columns = columns.within(names, path)
        self.count: int = file.metadata.num_rows
        self._starts = _starts(file.metadata)
        group = self._group(start)
        self.at = self._starts[group]
        found = self.columns
        wanted = [n for n in names if n in {found.image, *found.captions, *found.meta}]
        self._batches = (
            batch
            for number in range(group, file.metadata.num_row_groups)
            for batch in file.iter_batches(BATCH, row_groups=[number], columns=wanted)
        )
        self._rest: Any = pa.table({})

    def leads_to(self, row: int) -> bool:
        """Whether the row lies ahead, in the row group that is being read."""
        return self._starts[self._group(row)] <= self.at <= row

    def rows(self, start: int, end: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows from `start` to before `end` (None: all) with their numbers.

        Raises:
            pa.ArrowException, OSError: the file is damaged, or has less rows than it says.
        """
        end = self.count if end is None else min(end, self.count)
        while self.at < end:
            if not len(self._rest):
                self._rest = next(self._batches, None)
                if self._rest is None:
                    raise pa.ArrowInvalid(f"{self.count} rows promised, only {self.at} there")
            rest, at = self._rest, self.at
            low, high = (min(max(row - at, 0), len(rest)) for row in (start, end))
            self._rest, self.at = rest.slice(high), at + high
            yield from enumerate(rest.slice(low, high - low).to_pylist(), at + low)

    def _group(self, row: int) -> int:
        """The row group that holds a row; the first of an empty file."""
        return max(0, sum(start <= row for start in self._starts[:-1]) - 1)


def _starts(metadata: Any) -> list[int]:
    """The first row of each row group, and how many there are in all."""
    starts = [0]
    for group in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    return starts


_LEFT: dict[Key, Cursor] = {}
"""Of the last piece, if its file has more."""


@contextmanager
def cursor(piece: Piece, columns: Columns) -> Iterator[Cursor]:
    """The file of a piece, where the piece before left it if it leads there."""
    status = Path(piece.path).stat()
    key = (piece.path, status.st_mtime_ns, status.st_size, columns)
    left = _LEFT.pop(key, None)
    _LEFT.clear()
    if left is None or not left.leads_to(piece.start):
        left = Cursor(piece.path, columns, piece.start)
    yield left
    if left.at < left.count:
        _LEFT[key] = left
