"""The third pass: writes the shards of what stays, a shard a task, and the table of what goes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages.data import parquet_parts
from stages.data.image_text_dataset import KIND, VERSION, Sample, write_shard
from stages.images.selection import Figures, ShardPlan

BATCH = 64  # rows of a scratch table that are held: images are large

DROPPED = parquet_parts.versioned(
    pa.schema(
        [
            *((name, pa.string()) for name in ("key", "source", "place", "rule")),
            ("score", pa.float64()),
            ("reason", pa.string()),
            ("captions", pa.list_(pa.string())),
            *((name, pa.int64()) for name in ("width", "height")),
        ]
    ),
    KIND,
    VERSION,
)
COLUMNS = (*("key", "source", "place", "rule", "score", "reason", "captions"), "width", "height")
"""What the scratch tables and the table of dropped records have in common."""


@dataclass(frozen=True)
class ShardWork:
    """What the task of a shard is given."""

    out: Path
    stem: str
    keys: list[str]
    parts: list[tuple[Path, npt.NDArray[np.int64]]]
    """Scratch tables, and the rows of each that are written, in order."""


def shard_works(plans: Sequence[ShardPlan], figures: Figures, out: Path) -> list[ShardWork]:
    """The tasks that write these shards."""
    return [ShardWork(out, plan.stem, plan.keys, figures.by_commit(plan.rows)) for plan in plans]


def write_planned(work: ShardWork, commit: Path) -> None:
    """Write one shard and commit what the index says of it."""
    from pipeline.storage.atomic_io import write_atomic

    samples = (
        Sample(key, row["image"], tuple(row["captions"]), json.loads(row["meta"]))
        for key, row in zip(work.keys, _chosen(work), strict=True)
    )
    write_atomic(commit, json.dumps(write_shard(samples, work.out, work.stem)), durable=False)


def _chosen(work: ShardWork) -> Iterator[dict[str, Any]]:
    for path, rows in work.parts:
        yield from rows_of(path, rows, ["image", "captions", "meta"])


def rows_of(
    table: Path, rows: npt.NDArray[np.int64], columns: list[str]
) -> Iterator[dict[str, Any]]:
    """Some rows of a scratch table in order, a batch in memory at a time."""
    before = 0
    for batch in pq.ParquetFile(table).iter_batches(BATCH, columns=columns):
        within = rows[(rows >= before) & (rows < before + len(batch))] - before
        if len(within):
            yield from batch.take(pa.array(within)).to_pylist()
        before += len(batch)


def described(commits: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """All that the scratch tables' rows say but images and hashes, in order."""
    columns = [*COLUMNS, "captions_read", "resized", "stored"]
    for commit in commits:
        for batch in pq.ParquetFile(commit).iter_batches(1024, columns=columns):
            yield from batch.to_pylist()


def dropped_writer(out: Path) -> parquet_parts.PartWriter:
    """A writer of `dropped/part-00000.parquet`…: rows with `COLUMNS`."""
    return parquet_parts.PartWriter(out / "dropped", DROPPED)
