"""Tables on disk: numbered Parquet files with zstd compression, `part-00000.parquet`.

The same rows always give the same bytes: fixed row groups, no time stamps, no host names. A file is
written atomically.
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
BYTES_PER_PART = 64 << 20  # of text: memory of a worker while it reads a part
BYTES_PER_GROUP = 16 << 20  # of text: memory for rows while a part is written
ROWS_PER_GROUP = 2_048

Row = Mapping[str, Any]


def versioned_schema(schema: pa.Schema, kind: str, version: int) -> pa.Schema:
    """Return the schema with kind and version in its metadata."""
    return schema.with_metadata({"headwater.kind": kind, "headwater.version": str(version)})


class PartEncoder:
    """Encoder of one part that keeps at most one row group of rows in memory.

    A group ends after `ROWS_PER_GROUP` rows or, with a text column, `BYTES_PER_GROUP` characters of
    it and of `meta`.
    """

    def __init__(self, schema: pa.Schema, text_column: str | None = None) -> None:
        self.schema = schema
        self.rows = 0
        self.characters = 0
        self._text_column = text_column
        self._buffer = io.BytesIO()
        self._writer = pq.ParquetWriter(self._buffer, schema, compression="zstd")
        self._group: list[Row] = []
        self._group_size = 0

    def add(self, row: Row) -> None:
        """Add one row."""
        self._group.append(row)
        self.rows += 1
        if self._text_column:
            length = len(row[self._text_column]) + len(row.get("meta") or "")
            self._group_size += length
            self.characters += length
        if len(self._group) >= ROWS_PER_GROUP or self._group_size >= BYTES_PER_GROUP:
            self._end_group()

    def finish(self) -> bytes:
        """Return the bytes of the part; without rows it has one empty row group."""
        if self._group or not self.rows:
            self._end_group()
        self._writer.close()
        return self._buffer.getvalue()

    def _end_group(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._group, self.schema))
        self._group, self._group_size = [], 0


def encode_part(rows: Iterable[Row], schema: pa.Schema, text_column: str | None = None) -> bytes:
    """Return the bytes of a part with these rows."""
    part = PartEncoder(schema, text_column)
    for row in rows:
        part.add(row)
    return part.finish()


class PartWriter:
    """Writer of a stream of rows in parts of fixed limits, which depend on the rows alone."""

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
        """Write the last part; a table without rows has one empty part."""
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
    """Return the parts of a table, in order.

    Raises:
        InputError: the folder has no part.
    """
    files = sorted(Path(folder).glob("part-*.parquet"))
    if not files:
        raise InputError(
            f"no {kind} here: expected a folder with part-*.parquet",
            where=str(folder),
            remedy=f"give an artifact of kind {kind}",
        )
    return files


def open_part(path: Path, kind: str, version: int) -> pq.ParquetFile:
    """Open a part and check its kind and version.

    Raises:
        CorruptArtifact: the file is damaged, of another kind, or of a later version.
    """
    try:
        part = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptArtifact(f"unreadable part: {error}", where=str(path)) from error
    metadata = part.schema_arrow.metadata or {}
    found = metadata.get(b"headwater.kind", b"?").decode(), metadata.get(b"headwater.version", b"0")
    if found[0] != kind or int(found[1]) > version:
        raise CorruptArtifact(
            f"expected a part of {kind} version {version}, found {found[0]} version "
            f"{found[1].decode()}",
            where=str(path),
        )
    return part


def read_batches(
    folder: Path, kind: str, version: int, columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of all parts in order, one row group at a time."""
    for path in part_files(folder, kind):
        yield from open_part(path, kind, version).iter_batches(ROWS_PER_GROUP, columns=columns)
