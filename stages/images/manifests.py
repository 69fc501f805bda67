"""The rows of manifests: csv, tsv, jsonl and parquet files that name an image a row.

A piece of a manifest is read without what lies before it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from stages.images.image_sources import Lines, Piece, damaged, table

IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_name", "path", "file")
CAPTION_COLUMNS = ("caption", "captions", "text", "title")


class BrokenFile(InputError):
    """A file cannot be read on: it is damaged, or cut short."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which fields of records are read."""

    image: str | None = None
    """The image's path; null takes the first of `IMAGE_COLUMNS` that there is."""
    captions: tuple[str, ...] = ()
    """Empty takes the first of `CAPTION_COLUMNS`."""
    meta: tuple[str, ...] = ()
    """Those that are kept beside; of tars and folders all are."""
    root: str | None = None
    """The folder that paths in manifests are relative to; null is the manifest's own."""

    def guessed(self, names: tuple[str, ...]) -> Columns:
        """The same, with what is open taken from the names that a record has."""
        image = self.image or next((name for name in IMAGE_COLUMNS if name in names), "image")
        captions = self.captions or tuple(n for n in CAPTION_COLUMNS if n in names)[:1]
        return Columns(image, captions, self.meta, self.root)

    def within(self, names: tuple[str, ...], where: str) -> Columns:
        """The same with the names that a manifest has.

        Raises:
            InputError: it lacks one.
        """
        found = self.guessed(names)
        captions = found.captions or CAPTION_COLUMNS[:1]
        for key, name in (
            ("image_column", found.image),
            *(("caption_columns", n) for n in captions),
        ):
            if name not in names:
                known = ", ".join(names) or "a header line"
                remedy = f"set {key} to one of {known}"
                raise InputError(f"no column {name!r}", where=where, remedy=remedy)
        return found


Row = Mapping[Any, Any]


def rows(piece: Piece, columns: Columns) -> Iterator[tuple[int, Row, Columns]]:
    """The rows of a manifest with their numbers. What is wrong with a row is under the key None."""
    reader = {"jsonl": _jsonl_rows, "parquet": _parquet_rows}.get(piece.kind, _csv_rows)
    yield from reader(piece, columns)


def _csv_rows(piece: Piece, columns: Columns) -> Iterator[tuple[int, Row, Columns]]:
    with Path(piece.path).open("rb") as stream:
        stream.seek(piece.start)
        lines = table(Lines(stream, piece.end), piece.kind)
        try:
            names = piece.names or tuple(next(lines, []))
            found = columns.within(names, piece.path)
            for number, row in enumerate(lines, piece.first):
                if not row:
                    continue
                wrong = "" if len(row) == len(names) else f"{len(row)} fields, not {len(names)}"
                yield number, {**dict(zip(names, row, strict=False)), None: wrong}, found
        except csv.Error as error:
            raise BrokenFile(f"not a {piece.kind} file: {error}", where=piece.path) from error


def _jsonl_rows(piece: Piece, columns: Columns) -> Iterator[tuple[int, Row, Columns]]:
    with Path(piece.path).open("rb") as stream:
        stream.seek(piece.start)
        for number, line in enumerate(Lines(stream, piece.end), piece.first):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                yield number, {None: "no JSON object"}, columns
            else:
                yield number, row, columns.guessed(tuple(row))


def _parquet_rows(piece: Piece, columns: Columns) -> Iterator[tuple[int, Row, Columns]]:
    import pyarrow as pa

    from stages.images.parquet_manifest import cursor

    try:
        with cursor(piece, columns) as file:
            for number, row in file.rows(piece.start, piece.end):
                yield number, row, file.columns
    except (pa.ArrowException, OSError) as error:
        if not damaged(error):
            raise
        raise BrokenFile(f"not a parquet file: {error}", where=piece.path) from error
