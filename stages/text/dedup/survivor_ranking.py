"""Which of several copies is wished for: the documents in order of the wishes of `dedup.prefer`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages.text.dedup.components import Rows
from stages.text.filter_decisions import FilterDecisions

Key = npt.NDArray[np.float64]
_COLUMNS = {"source": ("origin", 1), "length": ("characters", -1), "language": ("confidence", -1)}


def rank_by_preference(
    preferences: Sequence[str], commits: Sequence[Path], decisions: FilterDecisions
) -> Rows:
    """The place of each of N documents, shape (N,): the most wished for comes first, then the
    first read."""
    return rank_rows(
        [_key(preference, commits, decisions) for preference in preferences], len(decisions.failed)
    )


def rank_rows(keys: Sequence[npt.NDArray[np.generic]], size: int) -> Rows:
    """The place of each row when the least keys come first, then the first rows."""
    order = np.lexsort([np.arange(size), *reversed(keys)])
    rank = np.empty(size, np.int64)
    rank[order] = np.arange(size)
    return rank


def _key(preference: str, commits: Sequence[Path], decisions: FilterDecisions) -> Key:
    """A number for each document, the least for the one that is wished for; NaN, which sorts last,
    for one without."""
    documents = len(decisions.failed)
    if preference in _COLUMNS:
        column, sign = _COLUMNS[preference]
        found = pa.concat_tables(pq.read_table(commit, columns=[column]) for commit in commits)
        key: Key = found[column].to_numpy()[:documents].astype(np.float64)
        return sign * key
    name = preference.removeprefix("-")
    group, _, field = name.partition(".")
    if group == "meta":
        values = np.fromiter(_numbers(commits, field), np.float64)[:documents]
    else:
        values = decisions.scores[:, decisions.rules.index(name)]
    return values if name != preference else -values


def _numbers(commits: Sequence[Path], field: str) -> Iterator[float]:
    """A field of every document's `meta`; NaN where it is no number."""
    for commit in commits:
        for batch in pq.ParquetFile(commit).iter_batches(4096, columns=["meta"]):
            for meta in batch.column(0).to_pylist():
                try:
                    yield float(json.loads(meta).get(field))
                except (TypeError, ValueError):
                    yield float("nan")
