"""Splitting of large files into parts, so that a task is bounded whatever the size of a file.

Line-based files are split after a line, parquet files after a row group. A part stores how many
records and lines precede it, so that each document and line keeps its number in the whole file.
Compressed files cannot be read from the middle, and csv records may contain line ends: these files
stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from stages.data.formats.encoded_lines import EncodedLines
from stages.text.sources.file_formats import compression, file_format
from stages.text.sources.file_io import open_file, read_errors
from stages.text.sources.source_file import FilePart, SourceFile


def split_file(file: SourceFile, size: int) -> Iterator[SourceFile]:
    """Yield the file in parts of about `size` bytes, each of at least a line or a row group, and
    at most one more than fits."""
    splittable = file.size > size and not compression(file.place)
    if splittable and file_format(file.place) in (".jsonl", ".ndjson"):
        with read_errors(file), open_file(file) as stream:
            for part in _line_ranges(EncodedLines(stream), size):
                yield replace(file, size=part.end - part.start, part=part)
    elif splittable and file_format(file.place) == ".parquet":
        yield from _row_groups(file, size)
    else:
        yield file


def _line_ranges(lines: EncodedLines, size: int) -> Iterator[FilePart]:
    """Yield ranges of lines; blank lines are not records."""
    start = end = records = 0
    before = 0, 0
    for number, line in enumerate(lines, 1):
        end = lines.bytes_read
        records += not line.isspace()
        if end - start >= size:
            yield FilePart(start, end, *before, lines.encoding)
            start, before = end, (records, number)
    if end > start:
        yield FilePart(start, end, *before, lines.encoding)


def _row_groups(file: SourceFile, size: int) -> Iterator[SourceFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with read_errors(file), open_file(file) as stream:
            footer = pq.ParquetFile(stream).metadata
    except (pa.ArrowException, ValueError):
        yield file  # its reader reports the damage
        return
    start = rows = before = bytes_in_part = 0
    for group in range(footer.num_row_groups):
        bytes_in_part += footer.row_group(group).total_byte_size
        rows += footer.row_group(group).num_rows
        if bytes_in_part >= size or group == footer.num_row_groups - 1:
            share = file.size * (rows - before) // max(1, footer.num_rows)
            yield replace(file, size=share, part=FilePart(start, group + 1, before, before))
            start, before, bytes_in_part = group + 1, rows, 0
