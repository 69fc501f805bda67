"""Rows of manifests: csv, tsv, jsonl and parquet files that name one image per row.

A piece of a manifest is read without the rows before it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.curation.broken_files import BrokenFile
from stages.images.columns import ImageColumns
from stages.images.image_sources import CountedLines, ImagePiece, csv_rows, is_corruption

Row = Mapping[Any, Any]
NumberedRow = tuple[int, Row, ImageColumns]


def read_rows(piece: ImagePiece, columns: ImageColumns) -> Iterator[NumberedRow]:
    """Yield the rows of a manifest with their numbers and columns.

    A malformed row has its error under the key None.

    Raises:
        BrokenFile: the file is damaged or truncated.
        InputError: the file lacks a column.
    """
    reader = {"jsonl": _jsonl_rows, "parquet": _parquet_rows}.get(piece.kind, _csv_rows)
    yield from reader(piece, columns)


def _csv_rows(piece: ImagePiece, columns: ImageColumns) -> Iterator[NumberedRow]:
    with Path(piece.path).open("rb") as stream:
        stream.seek(piece.start)
        rows = csv_rows(CountedLines(stream, piece.end), piece.kind)
        try:
            names = piece.names or tuple(next(rows, []))
            found = columns.resolve(names, piece.path)
            for number, row in enumerate(rows, piece.first):
                if not row:
                    continue
                error = "" if len(row) == len(names) else f"{len(row)} fields, not {len(names)}"
                yield number, {**dict(zip(names, row, strict=False)), None: error}, found
        except csv.Error as error:
            raise BrokenFile(f"not a {piece.kind} file: {error}", where=piece.path) from error


def _jsonl_rows(piece: ImagePiece, columns: ImageColumns) -> Iterator[NumberedRow]:
    with Path(piece.path).open("rb") as stream:
        stream.seek(piece.start)
        for number, line in enumerate(CountedLines(stream, piece.end), piece.first):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                yield number, {None: "not a JSON object"}, columns
            else:
                yield number, row, columns.with_defaults(tuple(row))


def _parquet_rows(piece: ImagePiece, columns: ImageColumns) -> Iterator[NumberedRow]:
    import pyarrow as pa

    from stages.images.parquet_manifest import open_cursor

    try:
        with open_cursor(piece, columns) as cursor:
            for number, row in cursor.rows(piece.start, piece.end):
                yield number, row, cursor.columns
    except (pa.ArrowException, OSError) as error:
        if not is_corruption(error):
            raise
        raise BrokenFile(f"not a parquet file: {error}", where=piece.path) from error
