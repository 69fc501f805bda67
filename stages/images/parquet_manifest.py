"""Rows of parquet manifests, each decoded once.

A row can be reached only through the rows before it in its row group, which may hold a million
rows where a piece has a few hundred. Because pieces are read in order, the position at the end of
one piece is kept for the next piece that the process reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.formats.arrow_rows import ArrowRow, arrow_rows
from stages.images.columns import ImageColumns
from stages.images.image_sources import ImagePiece

BATCH = 64  # rows in memory: they may hold images
_BUFFER = 1 << 20  # bytes of a column that are read at once, instead of its whole row group

Key = tuple[str, int, int, ImageColumns]


class ParquetCursor:
    """A forward reader of a file, from the row group of row `start` on.

    Raises:
        pa.ArrowException, OSError: the file is damaged, or cannot be opened.
        InputError: it lacks a column.
    """

    def __init__(self, path: str, columns: ImageColumns, start: int) -> None:
        file = pq.ParquetFile(path, buffer_size=_BUFFER)
        names = tuple(file.schema_arrow.names)
        self.columns = columns.resolve(names, path)
        self.num_rows: int = file.metadata.num_rows
        self._starts = _group_starts(file.metadata)
        group = self._group(start)
        self.position = self._starts[group]
        found = self.columns
        read = [n for n in names if n in {found.image, *found.captions, *found.meta}]
        self._batches = (
            batch
            for number in range(group, file.metadata.num_row_groups)
            for batch in file.iter_batches(BATCH, row_groups=[number], columns=read)
        )
        self._rest: Any = pa.table({})

    def can_reach(self, row: int) -> bool:
        """Return true if the row lies ahead in the current row group."""
        return self._starts[self._group(row)] <= self.position <= row

    def rows(self, start: int, end: int | None) -> Iterator[tuple[int, ArrowRow]]:
        """Yield the rows from `start` to before `end` (None: all) with their numbers.

        Raises:
            pa.ArrowException, OSError: the file is damaged, or shorter than its footer states.
        """
        end = self.num_rows if end is None else min(end, self.num_rows)
        while self.position < end:
            if not len(self._rest):
                self._rest = next(self._batches, None)
                if self._rest is None:
                    raise pa.ArrowInvalid(
                        f"the footer states {self.num_rows} rows, found {self.position}"
                    )
            rest, at = self._rest, self.position
            low, high = (min(max(row - at, 0), len(rest)) for row in (start, end))
            self._rest, self.position = rest.slice(high), at + high
            yield from enumerate(arrow_rows(rest.slice(low, high - low)), at + low)

    def _group(self, row: int) -> int:
        """Return the row group that holds a row; 0 for an empty file."""
        return max(0, sum(start <= row for start in self._starts[:-1]) - 1)


def _group_starts(metadata: Any) -> list[int]:
    """Return the first row of each row group, and the number of rows at the end."""
    starts = [0]
    for group in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    return starts


_CURSOR: dict[Key, ParquetCursor] = {}
"""The cursor of the last piece, if its file has more rows."""


@contextmanager
def open_cursor(piece: ImagePiece, columns: ImageColumns) -> Iterator[ParquetCursor]:
    """Open the file of a piece; continue from the piece before where that reaches it."""
    status = Path(piece.path).stat()
    key = (piece.path, status.st_mtime_ns, status.st_size, columns)
    cursor = _CURSOR.pop(key, None)
    _CURSOR.clear()
    if cursor is None or not cursor.can_reach(piece.start):
        cursor = ParquetCursor(piece.path, columns, piece.start)
    yield cursor
    if cursor.position < cursor.num_rows:
        _CURSOR[key] = cursor
