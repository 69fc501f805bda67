"""Components of rows with equal hashes, over shards and without any text.

    hash     a group of shards -> its (hash, row) records, sorted by hash
    link     a range of hashes from every group's file -> a spanning forest of its links
    merge    a few forests -> one; repeated until a single one is left

Each step is a task over shards: no task holds more than a fixed number of records, or one row
number per copy. A forest names the least row of each component, so that the result does not depend
on how the work is divided.
"""

from __future__ import annotations

import io
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.context import Context
from pipeline.stage import Workers
from stages.distributed.shard_tasks import ShardFunction, Work, run_shards
from stages.text.dedup.components import Rows, components

RECORD = np.dtype([("key", "<u8"), ("check", "<u4"), ("at", "<u4"), ("row", "<i8")])
"""A hash (`key` and `check`), the row of its document, and its place in the document."""
RECORDS_PER_TASK = 1 << 21  # 50 MB; sorting takes a multiple of it
FORESTS_PER_MERGE = 8
NEIGHBOURS = 8  # preceding rows with the same band that a row is compared with

Records = npt.NDArray[np.void]


@dataclass(frozen=True)
class TaskScope:
    """The workers of a search, and the folder of its tables."""

    folder: Path
    workers: Workers
    ctx: Context

    def run(self, name: str, function: ShardFunction[Work], works: Sequence[Work]) -> list[Path]:
        """Run the works as shards and return their commits."""
        return run_shards(function, works, self.folder / name, workers=self.workers, ctx=self.ctx)


def write_array(path: Path, array: npt.NDArray[np.generic]) -> None:
    """Write an array that tasks map into memory."""
    from pipeline.atomic_io import write_atomic

    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomic(path, buffer.getvalue(), durable=False)


def write_records(path: Path, records: Records) -> None:
    """Commit records sorted, as `HashRange` reads them."""
    write_array(path, sort_records(records))


def sort_records(records: Records) -> Records:
    """Return the records sorted by hash, then by row and place."""
    # By key alone first: that sort is vectorized, and most keys occur once.
    found = _take_rows(records, np.argsort(np.ascontiguousarray(records["key"])))
    keys = np.ascontiguousarray(found["key"])
    again = np.zeros(len(found) + 1, np.bool_)
    again[1:-1] = keys[1:] == keys[:-1]
    tied = np.flatnonzero(again[1:] | again[:-1])
    part = _take_rows(found, tied)
    columns = (np.ascontiguousarray(part[name]) for name in ("at", "row", "check", "key"))
    _as_words(found)[tied] = _as_words(_take_rows(part, np.lexsort(list(columns))))
    return found


def _take_rows(records: Records, rows: Rows) -> Records:
    """Return `records[rows]`, which numpy does slowly for structures."""
    return np.take(_as_words(records), rows, axis=0).view(RECORD).reshape(-1)


def _as_words(records: Records) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(records).view("<u8").reshape(-1, RECORD.itemsize // 8)


def hash_ranges(commits: Sequence[Path]) -> list[HashRange]:
    """Divide the hashes into ranges of about `RECORDS_PER_TASK` records."""
    records = sum(len(np.load(commit, mmap_mode="r")) for commit in commits)
    count = max(1, -(-records // RECORDS_PER_TASK))
    return [HashRange(tuple(commits), part, count) for part in range(count)]


@dataclass(frozen=True, slots=True)
class HashRange:
    """The records of all groups whose keys are in one of `count` equal ranges."""

    commits: tuple[Path, ...]
    part: int
    count: int

    def records(self) -> Records:
        """Read the records, sorted."""
        low, high = ((1 << 64) * part // self.count for part in (self.part, self.part + 1))
        found = [self._within(commit, low, high) for commit in self.commits]
        return sort_records(np.concatenate(found)) if found else np.empty(0, RECORD)

    def _within(self, commit: Path, low: int, high: int) -> Records:
        records = np.load(commit, mmap_mode="r")
        keys = records["key"]
        start, end = (bisect_left(range(len(keys)), edge, key=keys.item) for edge in (low, high))
        return np.array(records[start:end])


def repeats_previous(records: Records) -> npt.NDArray[np.bool_]:
    """Return which sorted records have the hash of the one before, shape (records,)."""
    same = np.zeros(len(records), np.bool_)
    for name in ("key", "check"):
        column = records[name]
        equal = column[1:] == column[:-1]
        same[1:] = equal if name == "key" else same[1:] & equal
    return same


def candidate_pairs(records: Records) -> tuple[Rows, Rows]:
    """Return pairs of rows that share a hash: each row with up to `NEIGHBOURS` before it, and with
    the first, so that the cost of a frequent hash is linear in its rows."""
    groups = np.cumsum(~repeats_previous(records))
    rows, at = records["row"], np.arange(len(records))
    pairs = [np.empty((0, 2), np.int64)]
    for back in range(1, min(NEIGHBOURS + 1, len(records))):
        together = np.flatnonzero(groups[back:] == groups[:-back])
        if not len(together):
            break
        pairs.append(np.stack([rows[together], rows[together + back]], 1))
    first = np.searchsorted(groups, groups)
    far = at - first > NEIGHBOURS
    pairs.append(np.stack([rows[first[far]], rows[far]], 1))
    left, right = np.concatenate(pairs).T
    return left, right


PairFilter = Callable[[Rows, Rows], npt.NDArray[np.bool_]]
"""Returns which pairs of rows are similar enough, shape (pairs,)."""


def link_range(work: tuple[HashRange, PairFilter | None], commit: Path) -> None:
    """Commit the forest of the links among the records of a range of hashes."""
    within, pair_filter = work
    records = within.records()
    if pair_filter is None:
        linked = np.flatnonzero(repeats_previous(records))
        left, right = records["row"][linked - 1], records["row"][linked]
    else:
        left, right = candidate_pairs(records)
        confirmed = pair_filter(left, right)
        left, right = left[confirmed], right[confirmed]
    write_array(commit, spanning_forest(left, right))


def merge_forests(work: tuple[Path, ...], commit: Path) -> None:
    """Commit the forest of the links of several forests."""
    edges = np.concatenate([np.load(path) for path in work])
    write_array(commit, spanning_forest(edges[:, 0], edges[:, 1]))


def spanning_forest(left: Rows, right: Rows) -> Rows:
    """Return the least row of each linked row's component, except for the least rows themselves:
    pairs (row, least row), shape (E, 2)."""
    nodes, places = np.unique(np.concatenate([left, right]), return_inverse=True)
    links = places.reshape(2, -1)
    roots = components(len(nodes), links[0], links[1])
    inner = np.flatnonzero(roots != np.arange(len(nodes)))
    return np.stack([nodes[inner], nodes[roots[inner]]], 1)


def join_equal_hashes(
    hashes: Sequence[Path], pair_filter: PairFilter | None, scope: TaskScope
) -> Rows:
    """Return the spanning forest of all links between rows that share a hash, shape (E, 2)."""
    forests = scope.run("linked", link_range, [(part, pair_filter) for part in hash_ranges(hashes)])
    level = 0
    while len(forests) > 1:
        works = [
            tuple(forests[start : start + FORESTS_PER_MERGE])
            for start in range(0, len(forests), FORESTS_PER_MERGE)
        ]
        forests = scope.run(f"merged-{level}", merge_forests, works)
        level += 1
    found: Rows = np.load(forests[0]) if forests else np.empty((0, 2), np.int64)
    return found


class RowFiles:
    """Rows of arrays in several files, shape (rows, width), read by memory map."""

    def __init__(self, files: Sequence[Path], starts: Sequence[int]) -> None:
        self._files = tuple(files)
        self._starts = np.array(starts)

    def take(self, rows: Rows) -> npt.NDArray[np.generic]:
        """Read these rows, in this order."""
        where = np.searchsorted(self._starts, rows, side="right") - 1
        taken: npt.NDArray[np.generic] | None = None
        for file in np.unique(where).tolist():
            mine = np.flatnonzero(where == file)
            source = np.load(self._files[file], mmap_mode="r")
            if taken is None:
                taken = np.empty((len(rows), source.shape[1]), source.dtype)
            taken[mine] = source[rows[mine] - self._starts[file]]
        return np.empty((0, 1)) if taken is None else taken


def blocks(count: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size` that cover `count`."""
    yield from (slice(start, min(start + size, count)) for start in range(0, count, size))


@dataclass(frozen=True)
class JaccardAtLeast:
    """Filter of pairs whose signatures estimate at least a given Jaccard similarity."""

    signatures: RowFiles
    threshold: float

    def __call__(self, left: Rows, right: Rows) -> npt.NDArray[np.bool_]:
        """Return whether each pair reaches the threshold, shape (pairs,)."""
        agree = np.zeros(len(left), np.bool_)
        for block in blocks(len(left), 1 << 16):
            first, second = (self.signatures.take(side[block]) for side in (left, right))
            agree[block] = (first == second).mean(axis=1) >= self.threshold
        return agree
