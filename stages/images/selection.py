"""The second pass: which records stay, which copies go, what is held out, and where each is
written. It sees figures and hashes, no image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages.data.hashing import hash64
from stages.data.image_text_dataset import SPLITS, Cutter
from stages.images.image_params import Copies
from stages.images.perceptual_hash import COLORS, lookalikes

Rows = npt.NDArray[np.int64]
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_KEY = 64
EVAL_NAMES = ("eval", "val", "valid", "validation", "test", "heldout")
"""What a field that names the split may call the held-out one."""


@dataclass(frozen=True)
class Figures:
    """What the rows of the scratch tables say of N records, in order."""

    commits: Sequence[Path]
    counts: list[int]
    """Records of each commit."""
    table: pa.Table

    @classmethod
    def of(cls, commits: Sequence[Path]) -> Figures:
        """Read them."""
        columns = [
            *("id", "key", "rule", "score", "split", "share", "stored"),
            *("exact", "look", "caption", "colors", "origin"),
        ]
        tables = [pq.read_table(commit, columns=columns) for commit in commits]
        return cls(commits, [len(table) for table in tables], pa.concat_tables(tables))

    def __len__(self) -> int:
        return len(self.table)

    def of_rows(self, name: str, rows: Rows) -> pa.ChunkedArray:
        """A column's values of some rows."""
        return self.table[name].take(pa.array(rows))

    def by_commit(self, rows: Rows) -> list[tuple[Path, Rows]]:
        """The scratch tables that hold these rows, with their numbers in each."""
        starts = np.cumsum([0, *self.counts])
        commits = np.searchsorted(starts, rows, side="right") - 1
        return [
            (self.commits[at], rows[commits == at] - starts[at])
            for at in np.unique(commits).tolist()
        ]


@dataclass(frozen=True)
class Verdicts:
    """What becomes of N records."""

    rule: npt.NDArray[np.object_]
    """What dropped each; empty for one that stays."""
    score: npt.NDArray[np.float64]
    """The figure that it was dropped by."""
    stands_for: Rows
    """The row that each is a copy of; its own if it is none."""

    @property
    def kept(self) -> Rows:
        """The rows that stay."""
        return np.flatnonzero(self.rule == "")


def decide(figures: Figures, copies: Copies) -> Verdicts:
    """Drop copies of what the first pass let through; the first that was read stays."""
    rule = np.array(figures.table["rule"].to_pylist(), object)
    score = figures.table["score"].to_numpy().copy()
    verdicts = Verdicts(rule, score, np.arange(len(figures)))
    if copies.exact:
        _drop_equal(figures, verdicts, "exact", "exact_duplicate")
    if copies.near is not None:
        _drop_near(figures, verdicts, copies.near, copies.near_color)
    if copies.captions:
        _drop_equal(figures, verdicts, "caption", "caption_duplicate")
    return verdicts


def drop_below(verdicts: Verdicts, scores: npt.NDArray[np.float64], least: float) -> None:
    """Drop what scores less; `scores` are those of the kept rows in order."""
    rows = verdicts.kept
    low = scores < least
    verdicts.rule[rows[low]] = "clip_score"
    verdicts.score[rows[low]] = scores[low]


def _drop_equal(figures: Figures, verdicts: Verdicts, column: str, rule: str) -> None:
    rows = verdicts.kept
    codes = figures.of_rows(column, rows).combine_chunks().dictionary_encode().indices.to_numpy()
    _, first, group = np.unique(codes, return_index=True, return_inverse=True)
    _drop(verdicts, rows, rows[first[group]], rule, np.zeros(len(rows)))


def _drop_near(figures: Figures, verdicts: Verdicts, distance: int, color: float) -> None:
    rows = verdicts.kept
    colors = b"".join(figures.of_rows("colors", rows).to_pylist())
    stands, bits = lookalikes(
        figures.of_rows("look", rows).to_numpy(),
        np.frombuffer(colors, np.uint8).reshape(-1, COLORS),
        distance,
        color,
    )
    _drop(verdicts, rows, rows[stands], "near_duplicate", bits.astype(np.float64))


def _drop(
    verdicts: Verdicts, rows: Rows, stands: Rows, rule: str, score: npt.NDArray[np.float64]
) -> None:
    copies = rows != stands
    verdicts.rule[rows[copies]] = rule
    verdicts.score[rows[copies]] = score[copies]
    verdicts.stands_for[rows[copies]] = stands[copies]


def held_out(figures: Figures, rows: Rows, share: float, sources: int) -> npt.NDArray[np.bool_]:
    """Which rows are held out. Where a field names the split of any row, it decides alone, and rows
    without it are trained on; else those of sources from number `sources` on, and a share of the
    rest by hash."""
    named = figures.of_rows("split", rows)
    if named.null_count < len(rows):
        names = [str(name).lower() in EVAL_NAMES for name in named.to_pylist()]
        return np.array(names, np.bool_)
    outside: npt.NDArray[np.bool_] = figures.of_rows("origin", rows).to_numpy() >= sources
    by_hash: npt.NDArray[np.bool_] = figures.of_rows("share", rows).to_numpy() < share
    return outside | by_hash


@dataclass(frozen=True)
class ShardPlan:
    """A shard that is to be written."""

    stem: str
    rows: Rows
    """Of all records, in order."""
    keys: list[str]
    """Of each."""


def plan_shards(
    figures: Figures,
    rows: Rows,
    outside: npt.NDArray[np.bool_],
    shard_samples: int,
    shard_bytes: int,
) -> Iterator[ShardPlan]:
    """The shards of both splits, samples in the order in which they were read."""
    keys = list(_keys(figures, rows))
    sizes = figures.of_rows("stored", rows).to_pylist()
    for split, chosen in zip(SPLITS, (~outside, outside), strict=True):
        cutter, shards = Cutter(shard_samples, shard_bytes), list[list[int]]()
        for at in np.flatnonzero(chosen).tolist():
            if cutter.begins(sizes[at]):
                shards.append([])
            shards[-1].append(at)
        for number, held in enumerate(shards):
            yield ShardPlan(f"{split}-{number:05d}", rows[held], [keys[at] for at in held])


def _keys(figures: Figures, rows: Rows) -> Iterator[str]:
    """Each row's own key in the characters that keys have; one that is there twice gets its id, and
    where sources of one name have that twice too, a number."""
    seen: set[int] = set()
    names = zip(
        figures.of_rows("key", rows).to_pylist(),
        figures.of_rows("id", rows).to_pylist(),
        strict=True,
    )
    for name, identity in names:
        own = _NOT_IN_KEYS.sub("-", name).strip("-")[:_LONGEST_KEY] or identity
        longer = f"{own}-{identity[:16]}"
        numbered = (f"{longer}-{number}" for number in count(2))
        key = next(k for k in chain((own, longer), numbered) if hash64(k) not in seen)
        seen.add(hash64(key))
        yield key
