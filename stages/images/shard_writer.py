"""Writes the shards of kept records, one per task, and reads rows of annotation tables."""

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

from stages.data.image_text_dataset import Sample, write_shard
from stages.images.selection import RecordTable, ShardPlan

BATCH = 64  # rows of an annotation table in memory: images are large


@dataclass(frozen=True)
class ShardTask:
    """The shard that a task writes."""

    out: Path
    stem: str
    keys: list[str]
    parts: list[tuple[Path, npt.NDArray[np.int64]]]
    """Annotation tables, each with the numbers of its rows to write, in order."""


def shard_tasks(plans: Sequence[ShardPlan], records: RecordTable, out: Path) -> list[ShardTask]:
    """Return the tasks that write the planned shards."""
    return [ShardTask(out, plan.stem, plan.keys, records.by_commit(plan.rows)) for plan in plans]


def write_planned_shard(task: ShardTask, commit: Path) -> None:
    """Write one shard and commit its entry of the index."""
    from pipeline.atomic_io import write_atomic

    columns = ["image", "captions", "meta"]
    rows = (row for table, numbers in task.parts for row in read_rows_of(table, numbers, columns))
    samples = (
        Sample(key, row["image"], tuple(row["captions"]), json.loads(row["meta"]))
        for key, row in zip(task.keys, rows, strict=True)
    )
    write_atomic(commit, json.dumps(write_shard(samples, task.out, task.stem)), durable=False)


def read_rows_of(
    table: Path, numbers: npt.NDArray[np.int64], columns: list[str]
) -> Iterator[dict[str, Any]]:
    """Yield some rows of an annotation table in order, with one batch in memory."""
    before = 0
    for batch in pq.ParquetFile(table).iter_batches(BATCH, columns=columns):
        within = numbers[(numbers >= before) & (numbers < before + len(batch))] - before
        if len(within):
            yield from batch.take(pa.array(within)).to_pylist()
        before += len(batch)
