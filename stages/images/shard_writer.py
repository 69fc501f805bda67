"""Writes the shards of kept records, one per task, and reads rows of annotation tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
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
    added: list[Sequence[str]]
    """Captions that are added to each sample."""


def shard_tasks(
    plans: Sequence[ShardPlan],
    records: RecordTable,
    added: Mapping[int, Sequence[str]],
    out: Path,
) -> list[ShardTask]:
    """Return the tasks that write the planned shards; `added` are further captions by row."""
    return [
        ShardTask(
            out,
            plan.stem,
            plan.keys,
            records.by_commit(plan.rows),
            [added.get(row, ()) for row in plan.rows.tolist()],
        )
        for plan in plans
    ]


def write_planned_shard(task: ShardTask, commit: Path) -> list[Path]:
    """Write one shard and commit its entry of the index; return the files of the shard."""
    from pipeline.atomic_io import write_atomic

    columns = ["image", "captions", "meta"]
    rows = (row for table, numbers in task.parts for row in read_rows_of(table, numbers, columns))
    samples = (
        Sample(key, row["image"], (*row["captions"], *added), json.loads(row["meta"]))
        for key, row, added in zip(task.keys, rows, task.added, strict=True)
    )
    write_atomic(commit, json.dumps(write_shard(samples, task.out, task.stem)), durable=False)
    return [task.out / f"{task.stem}.tar", task.out / "index" / f"{task.stem}.npy"]


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
