"""Rows of manifests: csv, tsv, jsonl and parquet files that name one image per row.

A piece of a manifest is read without the rows before it. A row that cannot be read costs no other.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from stages.curation.broken_files import BrokenFile
from stages.data.formats.csv_table import CsvTable
from stages.data.formats.encoded_lines import EncodedLines
from stages.data.formats.json_values import parse_json
from stages.images.columns import ImageColumns
from stages.images.image_sources import ImagePiece, delimiter_of, is_corruption


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """A row of a manifest, or the reason why it cannot be read."""

    number: int
    """Number of the row in the file, from 0."""
    columns: ImageColumns
    """Names of the fields to read."""
    values: Mapping[str, Any] = field(default_factory=dict)
    broken: str = ""
    """Rule `broken.KIND` of a row that cannot be read."""
    error: str = ""


def read_rows(piece: ImagePiece, columns: ImageColumns) -> Iterator[ManifestRow]:
    """Yield the rows of a manifest.

    Raises:
        BrokenFile: the file is damaged or truncated.
        InputError: the file lacks a column.
    """
    reader = {"jsonl": _jsonl_rows, "parquet": _parquet_rows}.get(piece.kind, _csv_rows)
    yield from reader(piece, columns)


def _csv_rows(piece: ImagePiece, columns: ImageColumns) -> Iterator[ManifestRow]:
    with Path(piece.path).open("rb") as stream:
        lines = EncodedLines(stream, piece.encoding, start=piece.start, end=piece.end)
        header = [_csv_line(piece)] if piece.names else []
        try:
            table = CsvTable(chain(header, lines.decoded()), delimiter_of(piece))
        except csv.Error as error:
            raise BrokenFile(f"not a {piece.kind} file: {error}", where=piece.path) from error
        if not table.columns:
            return
        found = columns.resolve(tuple(table.columns), piece.path)
        read = {found.image or "", *found.captions, *found.meta}
        for number, row in enumerate(table, piece.first):
            values = dict(zip(table.columns, row.values, strict=False))
            undecoded = filter(None, (lines.reason(values[n]) for n in read & values.keys()))
            if row.broken or len(row.values) < len(table.columns):
                reason = row.broken or f"{len(row.values)} fields, not {len(table.columns)}"
                yield ManifestRow(number, found, broken="broken.columns", error=reason)
            elif reason := next(undecoded, ""):
                yield ManifestRow(number, found, broken="broken.encoding", error=reason)
            else:
                yield ManifestRow(number, found, values)


def _csv_line(piece: ImagePiece) -> str:
    """Return the header of a piece as the first line of a csv text."""
    line = io.StringIO(newline="")
    csv.writer(line, delimiter=delimiter_of(piece)).writerow(piece.names)
    return line.getvalue()


def _jsonl_rows(piece: ImagePiece, columns: ImageColumns) -> Iterator[ManifestRow]:
    with Path(piece.path).open("rb") as stream:
        lines = EncodedLines(stream, piece.encoding, start=piece.start, end=piece.end)
        for number, line in enumerate(lines, piece.first):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                undecoded = lines.reason(line)
                rule = "broken.encoding" if undecoded else "broken.json"
                yield ManifestRow(number, columns, broken=rule, error=undecoded or str(error)[:200])
                continue
            if isinstance(row, dict):
                yield ManifestRow(number, columns.with_defaults(tuple(row)), row)
            else:
                reason = "not a JSON object"
                yield ManifestRow(number, columns, broken="broken.columns", error=reason)


def _parquet_rows(piece: ImagePiece, columns: ImageColumns) -> Iterator[ManifestRow]:
    import pyarrow as pa

    from stages.images.parquet_manifest import open_cursor

    try:
        with open_cursor(piece, columns) as cursor:
            for number, row in cursor.rows(piece.start, piece.end):
                yield ManifestRow(number, cursor.columns, row.values, row.broken, row.error)
    except (pa.ArrowException, OSError, ValueError) as error:  # names in the footer are UTF-8
        if not is_corruption(error):
            raise
        raise BrokenFile(f"not a parquet file: {error}", where=piece.path) from error
