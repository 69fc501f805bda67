"""Large files in pieces, so that a task is bounded whatever the size of a file.

Files of lines are cut after a line, parquet files after a row group. A piece knows what lies before
it: the number of each document and line is that in the whole file, wherever it is cut. What is
compressed as a whole, and csv, whose records may hold line ends, cannot be read from the middle and
stays in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import IO

from stages.text.sources.source_listing import Cut, SourceFile


def split_file(file: SourceFile, size: int) -> Iterator[SourceFile]:
    """The file in pieces of about `size` bytes: at least a line or a row group each, and at most
    one more than fits."""
    name = file.place.lower()
    cut = _lines if name.endswith(".jsonl") else _row_groups if name.endswith(".parquet") else None
    if cut is None or file.size <= size:
        yield file
    else:
        yield from cut(file, size)


def _lines(file: SourceFile, size: int) -> Iterator[SourceFile]:
    from stages.text.sources.readers import open_file, refusals_told

    with refusals_told(file), open_file(file) as stream:
        for start, end, records, lines in _line_ranges(stream, size):
            yield replace(file, size=end - start, cut=Cut(start, end, records, lines))


def _line_ranges(stream: IO[bytes], size: int) -> Iterator[tuple[int, int, int, int]]:
    """First byte, end, and the records and lines before, of each range; blank lines are no
    records."""
    start = end = records = 0
    before = 0, 0
    for lines, line in enumerate(stream, 1):
        end += len(line)
        records += not line.isspace()
        if end - start >= size:
            yield start, end, *before
            start, before = end, (records, lines)
    if end > start:
        yield start, end, *before


def _row_groups(file: SourceFile, size: int) -> Iterator[SourceFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stages.text.sources.readers import open_file, refusals_told

    try:
        with refusals_told(file), open_file(file) as stream:
            footer = pq.ParquetFile(stream).metadata
    except pa.ArrowInvalid:
        yield file  # its reader says what is wrong, and goes on
        return
    start = rows = before = held = 0
    for group in range(footer.num_row_groups):
        held += footer.row_group(group).total_byte_size
        rows += footer.row_group(group).num_rows
        if held >= size or group == footer.num_row_groups - 1:
            share = file.size * (rows - before) // max(1, footer.num_rows)
            yield replace(file, size=share, cut=Cut(start, group + 1, before, before))
            start, before, held = group + 1, rows, 0
