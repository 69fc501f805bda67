"""The first phase of curation: annotates every record of the sources and drops none.

A task reads some pieces and commits one table with a row per record. The later phases read these
tables alone: they compare measurements with limits, find duplicates and write what is kept.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.atomic_io import write_atomic
from pipeline.context import Context
from pipeline.stage import Workers
from stages.curation.broken_files import BrokenFile
from stages.curation.source_piece import Piece
from stages.data import parquet_parts
from stages.distributed.shard_tasks import run_shards

Record = TypeVar("Record")


class Annotator(ABC, Generic[Piece, Record]):
    """Reader and measurements of one kind of record; sent to the worker of each task."""

    schema: ClassVar[pa.Schema]
    """Schema of the annotation table."""
    payload_column: ClassVar[str]
    """The column that holds most of the bytes; it limits row groups."""

    @abstractmethod
    def read(self, piece: Piece) -> Iterator[Record]:
        """Yield the records of a piece in order.

        Raises:
            BrokenFile: the file is damaged or truncated.
            InputError: the file cannot be opened.
        """

    @abstractmethod
    def broken_record(self, piece: Piece, error: BrokenFile) -> Record:
        """Return the record that stands for the unreadable rest of a file."""

    @abstractmethod
    def annotate(self, piece: Piece, number: int, record: Record) -> dict[str, Any]:
        """Return the row of record `number` of the piece's file."""

    def rows(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """Yield a row per record; the last one of a broken file holds the reason."""
        number = piece.first_record
        try:
            for record in self.read(piece):
                yield self.annotate(piece, number, record)
                number += 1
        except BrokenFile as error:
            yield self.annotate(piece, number, self.broken_record(piece, error))


Task = tuple[Annotator[Piece, Any], Sequence[Piece]]


def annotate_pieces(task: Task[Piece], commit: Path) -> None:
    """Annotate the records of some pieces and commit them as one table."""
    annotator, pieces = task
    rows = (row for piece in pieces for row in annotator.rows(piece))
    table = parquet_parts.encode_part(rows, annotator.schema, annotator.payload_column)
    write_atomic(commit, table, durable=False)


def run_annotation(
    annotator: Annotator[Piece, Any],
    tasks: Sequence[Sequence[Piece]],
    ctx: Context,
    workers: Workers,
    *,
    on_commit: Callable[[int, Path], None] = lambda index, commit: None,
    enough: Callable[[int], bool] = lambda leading: False,
    shared: Path | None = None,
) -> list[Path]:
    """Annotate the pieces of each task on the workers, with progress in MB.

    Args:
        annotator: the measurements.
        tasks: pieces per task, in order.
        ctx: context of the stage.
        workers: number and size of the worker processes.
        on_commit: called with the index and the table of every task that is done.
        enough: see `run_shards`.
        shared: see `run_shards`.

    Returns:
        The annotation tables in order, up to where `enough` was true.
    """
    folder = ctx.scratch / "annotated"
    sizes = [sum(piece.size for piece in pieces) for pieces in tasks]
    started, size, records = time.monotonic(), 0, 0

    def report(index: int) -> None:
        nonlocal size, records
        commit = folder / f"{index:06d}"
        on_commit(index, commit)
        size += sizes[index]
        records += pq.read_metadata(commit).num_rows
        rate = records / max(1e-3, time.monotonic() - started)
        ctx.progress(size / 1e6, sum(sizes) / 1e6, "MB", records_per_second=rate)

    commits = run_shards(
        annotate_pieces,
        [(annotator, pieces) for pieces in tasks],
        folder,
        workers=workers,
        ctx=ctx,
        on_commit=report,
        enough=enough,
        shared=shared,
    )
    ctx.log(f"annotated {records:,} records in {time.monotonic() - started:.1f} s")
    return commits
