"""Token ids of records, encoded once on all cores and read by every rank through memory maps.

    000000, 000001, ...    Arrow IPC files, one batch per shard of consecutive records; `counts` in
                           the metadata of the schema: the records by outcome

The shards lie in the scratch folder of the stage and, under a hash of everything that determines
them, in the cache of the store: a later stage with the same data, chat format and limits links
them. Neither the number of cores nor the cache changes a byte.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.atomic_io import write_atomic
from pipeline.stage import Workers
from stages.curation.content_digest import digest_rows, file_digest
from stages.data.hashing import hash128_hex
from stages.data.table_split import TableSplit
from stages.distributed.shard_tasks import run_shards, share_commits

if TYPE_CHECKING:
    from pipeline.context import Context

RECORDS_PER_SHARD = 2_000
SHARDS_PER_PROCESS = 2  # fewer take less time than the start of a process
_COUNTS = b"counts"

Record = TypeVar("Record")
Array = npt.NDArray[Any]


class RecordEncoder(ABC, Generic[Record]):
    """Encoder of the records of one kind; sent to the worker of each shard."""

    version: ClassVar[int] = 1
    """Raised when the same records give other rows than before."""
    schema: ClassVar[pa.Schema]

    @property
    @abstractmethod
    def identity(self) -> str:
        """Everything next to the records that determines the rows."""

    @abstractmethod
    def records(self, path: Path, split: str) -> TableSplit[Record]:
        """Open the records of a split."""

    @abstractmethod
    def encode(self, record: Record, counts: Counter[str]) -> Iterator[Mapping[str, Any]]:
        """Yield the rows of a record, and count its outcome."""


Shard = tuple[RecordEncoder[Any], Path, str, range]
"""Encoder, folder of the records, split, and the indices of the records."""


def encode_split(
    encoder: RecordEncoder[Any],
    paths: Sequence[Path],
    split: str,
    ctx: Context,
    workers: Workers,
) -> EncodedTable:
    """Encode the records of a split of all paths, unless the cache has them.

    Args:
        encoder: the encoder.
        paths: folders of records; their rows follow each other.
        split: name of the split.
        ctx: context of the stage.
        workers: processes of the stage, whose cores encode.
    """
    works: list[Shard] = []
    for path in paths:
        every = range(len(encoder.records(path, split)))
        starts = every[::RECORDS_PER_SHARD]
        works += [(encoder, path, split, every[at : at + RECORDS_PER_SHARD]) for at in starts]
    key = _key(encoder, paths, split)
    shared = ctx.cache / "encoded" / key
    commits = run_shards(
        encode_shard,
        works,
        ctx.scratch / "encoded" / key,
        workers=_one_core_each(workers),
        ctx=ctx,
        shared=shared,
        processes=min(available_cores(), len(works) // SHARDS_PER_PROCESS),
    )
    share_commits(commits, shared)
    return EncodedTable(tuple(commits))


def encode_shard(shard: Shard, commit: Path) -> None:
    """Encode the records of a shard and commit them as one file."""
    encoder, path, split, indices = shard
    records, counts = encoder.records(path, split), Counter[str]()
    rows = [row for at in indices for row in encoder.encode(records[at], counts)]
    described = json.dumps(counts, sort_keys=True)
    schema = encoder.schema.with_metadata({_COUNTS: described})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))
    write_atomic(commit, sink.getvalue().to_pybytes(), durable=False)


@dataclass(frozen=True)
class EncodedTable:
    """The rows of all shards; only the paths are sent to a rank, which maps the files."""

    files: tuple[Path, ...]

    @cached_property
    def _batches(self) -> list[pa.RecordBatch]:
        return [pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0) for file in self.files]

    @cached_property
    def _first(self) -> Array:
        """First row of each shard, and the number of rows."""
        return np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    @cached_property
    def counts(self) -> Counter[str]:
        """Counts of the records by outcome."""
        counts = Counter[str]()
        for batch in self._batches:
            counts.update(json.loads(batch.schema.metadata[_COUNTS]))
        return counts

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files}

    def column(self, name: str, row: int) -> pa.Array:
        """Return the values of a list column in a row, without a copy."""
        shard = int(np.searchsorted(self._first, row, side="right")) - 1
        return self._batches[shard].column(name)[row - int(self._first[shard])].values

    def lengths(self, name: str) -> npt.NDArray[np.int64]:
        """Return the number of values of a list column in each row (rows,)."""
        found = [np.diff(batch.column(name).offsets.to_numpy()) for batch in self._batches]
        return np.concatenate([np.empty(0, np.int64), *found]).astype(np.int64)


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_core_each(workers: Workers) -> Workers:
    """Return the cores of the workers as workers of one core."""
    if workers.cpus <= 1:
        return Workers(num=workers.num, cpus=workers.cpus)
    return Workers(num=workers.num * int(workers.cpus))


def _key(encoder: RecordEncoder[Any], paths: Sequence[Path], split: str) -> str:
    """Return a hash of everything that determines the shards."""
    contents = [
        digest_rows((file.name, file_digest(file)) for file in sorted(path.glob("*.parquet")))
        for path in paths
    ]
    decisive = [type(encoder).__name__, encoder.version, encoder.identity, split, contents]
    return hash128_hex(json.dumps([*decisive, RECORDS_PER_SHARD]))
