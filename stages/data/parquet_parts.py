"""Numbered zstd-parquet parts: `part-00000.parquet`, the shape of every table on disk here.

The same rows always give the same bytes: fixed row groups, no time stamps, no host names. A part
is written whole or not at all.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import CorruptArtifact, InputError

ROWS_PER_PART = 50_000
BYTES_PER_PART = 64 << 20  # of text: what one worker holds of a part while it reads it
BYTES_PER_GROUP = 16 << 20  # of text: what is held of it as rows while it is written
ROWS_PER_GROUP = 2_048

Row = Mapping[str, Any]


def versioned_schema(schema: pa.Schema, kind: str, version: int) -> pa.Schema:
    """The schema with its kind and version in the file's own metadata."""
    return schema.with_metadata({"headwater.kind": kind, "headwater.version": str(version)})


class PartEncoder:
    """One part in the making, of which no more than a row group is held as rows: a group ends at
    `ROW_GROUP` rows, or, where a text column is named, at `BYTES_A_GROUP` characters of it and of
    `meta`."""

    def __init__(self, schema: pa.Schema, text_column: str | None = None) -> None:
        self.schema = schema
        self.rows = 0
        self.characters = 0
        self._text_column = text_column
        self._buffer = io.BytesIO()
        self._writer = pq.ParquetWriter(self._buffer, schema, compression="zstd")
        self._group: list[Row] = []
        self._held = 0

    def add(self, row: Row) -> None:
        """Add one row."""
        self._group.append(row)
        self.rows += 1
        if self._text_column:
            length = len(row[self._text_column]) + len(row.get("meta") or "")
            self._held += length
            self.characters += length
        if len(self._group) >= ROWS_PER_GROUP or self._held >= BYTES_PER_GROUP:
            self._end_group()

    def finish(self) -> bytes:
        """The bytes of the part; one without rows still has a row group, empty."""
        if self._group or not self.rows:
            self._end_group()
        self._writer.close()
        return self._buffer.getvalue()

    def _end_group(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._group, self.schema))
        self._group, self._held = [], 0


def encode_part(rows: Iterable[Row], schema: pa.Schema, text_column: str | None = None) -> bytes:
    """The bytes of a part of these rows."""
    part = PartEncoder(schema, text_column)
    for row in rows:
        part.add(row)
    return part.finish()


class PartWriter:
    """Cuts a stream of rows into parts by fixed limits, so that parts depend on the rows alone."""

    def __init__(self, folder: Path, schema: pa.Schema, text_column: str | None = None) -> None:
        self.folder = folder
        self.schema = schema
        self.parts = 0
        self.rows = 0
        self._text_column = text_column
        self._part: PartEncoder | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, row: Row) -> None:
        """Add one row."""
        if self._part is None:
            self._part = PartEncoder(self.schema, self._text_column)
        self._part.add(row)
        self.rows += 1
        if self._part.rows >= ROWS_PER_PART or self._part.characters >= BYTES_PER_PART:
            self._end_part(self._part)

    def close(self) -> None:
        """Write the last part; a table without rows still has one, empty."""
        if self._part or not self.parts:
            self._end_part(self._part or PartEncoder(self.schema))

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()

    def _end_part(self, part: PartEncoder) -> None:
        from pipeline.atomic_io import write_atomic

        write_atomic(self.folder / f"part-{self.parts:05d}.parquet", part.finish())
        self.parts += 1
        self._part = None


def part_files(folder: Path, kind: str) -> list[Path]:
    """The parts of a table in order.

    Raises:
        InputError: the folder holds none.
    """
    files = sorted(Path(folder).glob("part-*.parquet"))
    if not files:
        raise InputError(
            f"no {kind} here: a folder with part-*.parquet was expected",
            where=str(folder),
            remedy=f"name an artifact of kind {kind}",
        )
    return files


def open_part(path: Path, kind: str, version: int) -> pq.ParquetFile:
    """Open a part and check that it is of this kind and of a version that is known.

    Raises:
        CorruptArtifact: the file is torn, of another kind, or written by a later version.
    """
    try:
        part = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptArtifact(f"unreadable part: {error}", where=str(path)) from error
    metadata = part.schema_arrow.metadata or {}
    found = metadata.get(b"headwater.kind", b"?").decode(), metadata.get(b"headwater.version", b"0")
    if found[0] != kind or int(found[1]) > version:
        raise CorruptArtifact(
            f"a part of {found[0]} version {found[1].decode()} where {kind} version {version} "
            "was expected",
            where=str(path),
        )
    return part


def read_batches(
    folder: Path, kind: str, version: int, columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of all parts in order, a row group at a time."""
    for path in part_files(folder, kind):
        yield from open_part(path, kind, version).iter_batches(ROWS_PER_GROUP, columns=columns)
