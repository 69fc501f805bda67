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

ROWS_A_PART = 50_000
BYTES_A_PART = 64 << 20  # of text: what one worker holds of a part while it reads it
BYTES_A_GROUP = 16 << 20  # of text: of a table that is written as it is read
ROW_GROUP = 2_048

Row = Mapping[str, Any]


def versioned(schema: pa.Schema, kind: str, version: int) -> pa.Schema:
    """The schema with its kind and version in the file's own metadata."""
    return schema.with_metadata({"headwater.kind": kind, "headwater.version": str(version)})


def encode(rows: Iterable[Row] | pa.Table, schema: pa.Schema) -> bytes:
    """The bytes of one part."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema)
    buffer = io.BytesIO()
    pq.write_table(
        table.cast(schema).replace_schema_metadata(schema.metadata),
        buffer,
        compression="zstd",
        row_group_size=ROW_GROUP,
    )
    return buffer.getvalue()


def encode_by_groups(rows: Iterable[Row], schema: pa.Schema, text_column: str = "text") -> bytes:
    """The bytes of a part of any number of rows, of which no more than a row group is held: it ends
    at `ROW_GROUP` rows or `BYTES_A_GROUP` characters."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        group: list[Row] = []
        held = 0
        for row in rows:
            group.append(row)
            held += len(row[text_column])
            if len(group) >= ROW_GROUP or held >= BYTES_A_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group, held = [], 0
        writer.write_table(pa.Table.from_pylist(group, schema))
    return buffer.getvalue()


class PartWriter:
    """Cuts a stream of rows into parts by fixed limits, so that parts depend on the rows alone."""

    def __init__(self, folder: Path, schema: pa.Schema, text_column: str | None = None) -> None:
        self.folder = folder
        self.schema = schema
        self.parts = 0
        self.rows = 0
        self._text_column = text_column
        self._pending: list[Row] = []
        self._pending_bytes = 0
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, row: Row) -> None:
        """Add one row."""
        self._pending.append(row)
        if self._text_column:
            self._pending_bytes += len(row[self._text_column])
        if len(self._pending) >= ROWS_A_PART or self._pending_bytes >= BYTES_A_PART:
            self._flush()

    def close(self) -> None:
        """Write the last part; a table without rows still has one, empty."""
        if self._pending or not self.parts:
            self._flush()

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()

    def _flush(self) -> None:
        from pipeline.disk import write_atomic

        data = encode(self._pending, self.schema)
        write_atomic(self.folder / f"part-{self.parts:05d}.parquet", data)
        self.parts += 1
        self.rows += len(self._pending)
        self._pending, self._pending_bytes = [], 0


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
        yield from open_part(path, kind, version).iter_batches(ROW_GROUP, columns=columns)
