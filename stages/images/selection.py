"""Selects records: drops duplicates, holds out the eval split and plans the shards.

It reads the hashes and sizes of the annotation tables, never an image.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages.curation.decisions import Decisions, Rows
from stages.data.hashing import hash64
from stages.data.image_text_dataset import SPLITS, ShardSplitter
from stages.images.image_params import ImageDedup
from stages.images.perceptual_hash import COLOR_BYTES, find_near_duplicates

MERGED = "merged"
"""Rule of a row whose image is that of an earlier row, to which its captions are added."""
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_-]+")
_MAX_KEY = 64
EVAL_NAMES = ("eval", "val", "valid", "validation", "test", "heldout")
"""Values of the split field that mean the eval split, in lower case."""


@dataclass(frozen=True)
class RecordTable:
    """The annotations of N records in order, without images."""

    commits: Sequence[Path]
    """Annotation tables, one per task."""
    counts: list[int]
    """Number of records per annotation table."""
    table: pa.Table

    @classmethod
    def read(cls, commits: Sequence[Path]) -> RecordTable:
        """Read the columns that selection needs."""
        columns = [
            *("id", "key", "rule", "score", "split", "split_hash", "stored"),
            *("image_digest", "dhash", "caption_hash", "image_name_hash", "colors", "origin"),
        ]
        tables = [pq.read_table(commit, columns=columns) for commit in commits]
        return cls(commits, [len(table) for table in tables], pa.concat_tables(tables))

    def __len__(self) -> int:
        return len(self.table)

    def take(self, name: str, rows: Rows) -> pa.ChunkedArray:
        """Return the values of a column in some rows."""
        return self.table[name].take(pa.array(rows))

    def by_commit(self, rows: Rows) -> list[tuple[Path, Rows]]:
        """Return the annotation tables that hold the rows, each with their numbers in it."""
        starts = np.cumsum([0, *self.counts])
        commits = np.searchsorted(starts, rows, side="right") - 1
        return [
            (self.commits[at], rows[commits == at] - starts[at])
            for at in np.unique(commits).tolist()
        ]


def drop_duplicates(records: RecordTable, dedup: ImageDedup) -> Decisions:
    """Return the decisions of filters and deduplication; of duplicates the first read is kept.

    Rows of a manifest that name one image are not duplicates: by the rule `MERGED` their captions
    go to the first of them.
    """
    rule = np.array(records.table["rule"].to_pylist(), object)
    score = records.table["score"].to_numpy().copy()
    decisions = Decisions(rule, score, np.arange(len(records)))
    if dedup.exact:
        _drop_equal(records, decisions, "image_digest", "exact_duplicate")
        copies = np.flatnonzero(decisions.rule == "exact_duplicate")
        survivors = decisions.survivor[copies]
        name, first = (
            records.take("image_name_hash", rows).to_numpy() for rows in (copies, survivors)
        )
        decisions.rule[copies[name == first]] = MERGED
    if dedup.max_hamming_distance is not None:
        _drop_near(records, decisions, dedup.max_hamming_distance, dedup.max_color_distance)
    if dedup.captions:
        _drop_equal(records, decisions, "caption_hash", "caption_duplicate")
    return decisions


def filter_by_score(decisions: Decisions, scores: npt.NDArray[np.float64], minimum: float) -> None:
    """Drop the kept rows whose score is below the minimum; `scores` are in the order of `kept`."""
    low = scores < minimum
    decisions.drop(decisions.kept[low], "clip_score", scores[low])


def _drop_equal(records: RecordTable, decisions: Decisions, column: str, rule: str) -> None:
    rows = decisions.kept
    codes = records.take(column, rows).combine_chunks().dictionary_encode().indices.to_numpy()
    _, first, group = np.unique(codes, return_index=True, return_inverse=True)
    _drop_copies(decisions, rows, rows[first[group]], rule, np.zeros(len(rows)))


def _drop_near(
    records: RecordTable, decisions: Decisions, max_hamming: int, max_color: float
) -> None:
    rows = decisions.kept
    hashes = records.take("dhash", rows).to_numpy()
    colors = np.frombuffer(b"".join(records.take("colors", rows).to_pylist()), np.uint8)
    survivor, distance = find_near_duplicates(
        hashes, colors.reshape(-1, COLOR_BYTES), max_hamming, max_color
    )
    _drop_copies(decisions, rows, rows[survivor], "near_duplicate", distance.astype(np.float64))


def _drop_copies(
    decisions: Decisions, rows: Rows, survivor: Rows, rule: str, score: npt.NDArray[np.float64]
) -> None:
    copies = rows != survivor
    decisions.drop(rows[copies], rule, score[copies])
    decisions.survivor[rows[copies]] = survivor[copies]


def eval_mask(
    records: RecordTable, rows: Rows, eval_fraction: float, train_sources: int
) -> npt.NDArray[np.bool_]:
    """Return which rows are held out for evaluation, shape (len(rows),).

    If any row names its split, these names alone decide. Otherwise the records of sources from
    number `train_sources` on are held out, and a fraction of the others by hash.
    """
    split = records.take("split", rows)
    if split.null_count < len(rows):
        names = [str(name).lower() in EVAL_NAMES for name in split.to_pylist()]
        return np.array(names, np.bool_)
    by_source: npt.NDArray[np.bool_] = records.take("origin", rows).to_numpy() >= train_sources
    by_hash: npt.NDArray[np.bool_] = records.take("split_hash", rows).to_numpy() < eval_fraction
    return by_source | by_hash


@dataclass(frozen=True)
class ShardPlan:
    """The samples of one shard."""

    stem: str
    """File name without suffix."""
    rows: Rows
    """Rows of the samples in the record table, in order."""
    keys: list[str]
    """Unique keys of the samples."""


def plan_shards(
    records: RecordTable,
    rows: Rows,
    held_out: npt.NDArray[np.bool_],
    shard_samples: int,
    shard_bytes: int,
    extra_bytes: Mapping[int, int],
) -> Iterator[ShardPlan]:
    """Yield the shards of both splits; samples stay in the order in which they were read.

    `extra_bytes` is the size of the captions that are added to a row.
    """
    keys = list(_unique_keys(records, rows))
    stored = records.take("stored", rows).to_pylist()
    sizes = [n + extra_bytes.get(row, 0) for n, row in zip(stored, rows.tolist(), strict=True)]
    for split, chosen in zip(SPLITS, (~held_out, held_out), strict=True):
        splitter, shards = ShardSplitter(shard_samples, shard_bytes), list[list[int]]()
        for at in np.flatnonzero(chosen).tolist():
            if splitter.starts_shard(sizes[at]):
                shards.append([])
            shards[-1].append(at)
        for number, members in enumerate(shards):
            stem = f"{split}-{number:05d}"
            yield ShardPlan(stem, rows[members], [keys[at] for at in members])


def _unique_keys(records: RecordTable, rows: Rows) -> Iterator[str]:
    """Yield a unique key per row: its own key in the allowed characters; a repeated one with the
    record's id, and a number where sources of the same name repeat the id as well."""
    seen: set[int] = set()
    names = zip(
        records.take("key", rows).to_pylist(), records.take("id", rows).to_pylist(), strict=True
    )
    for name, identity in names:
        own = _NOT_IN_KEYS.sub("-", name).strip("-")[:_MAX_KEY] or identity
        longer = f"{own}-{identity[:16]}"
        numbered = (f"{longer}-{number}" for number in count(2))
        key = next(k for k in chain((own, longer), numbered) if hash64(k) not in seen)
        seen.add(hash64(key))
        yield key
