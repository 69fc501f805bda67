"""Ranking of duplicates by `dedup.prefer`; the first survives."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages.text.dedup.components import Rows

_COLUMNS = {"source": ("origin", 1), "length": ("characters", -1), "language": ("confidence", -1)}


def rank_by_preference(
    preferences: Sequence[str],
    annotations: Sequence[Path],
    rules: Sequence[str],
    scores: npt.NDArray[np.float64],
) -> Rows:
    """Return the rank of each of N documents, shape (N,): the most preferred first, then the one
    read first.

    Args:
        preferences: as in `DedupParams.prefer`.
        annotations: the annotation tables.
        rules: names of the R rules that were scored.
        scores: shape (N, R).
    """
    keys = [_sort_key(name, annotations, rules, scores) for name in preferences]
    return rank_rows(keys, len(scores))


def rank_rows(keys: Sequence[npt.NDArray[np.generic]], size: int) -> Rows:
    """Return the rank of each row when sorted by the keys, then by row."""
    order = np.lexsort([np.arange(size), *reversed(keys)])
    rank = np.empty(size, np.int64)
    rank[order] = np.arange(size)
    return rank


def _sort_key(
    preference: str,
    annotations: Sequence[Path],
    rules: Sequence[str],
    scores: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Return a number for each document, the least for the preferred one; NaN, which sorts last,
    for a document without a value."""
    if preference in _COLUMNS:
        column, sign = _COLUMNS[preference]
        found = pa.concat_tables(pq.read_table(table, columns=[column]) for table in annotations)
        key: npt.NDArray[np.float64] = found[column].to_numpy()[: len(scores)].astype(np.float64)
        return sign * key
    name = preference.removeprefix("-")
    group, _, field = name.partition(".")
    if group == "meta":
        values = np.fromiter(_meta_numbers(annotations, field), np.float64)[: len(scores)]
    else:
        values = scores[:, rules.index(name)]
    return values if name != preference else -values


def _meta_numbers(annotations: Sequence[Path], field: str) -> Iterator[float]:
    """Yield a field of every document's metadata; NaN where it is not a number."""
    for table in annotations:
        for batch in pq.ParquetFile(table).iter_batches(4096, columns=["meta"]):
            for meta in batch.column(0).to_pylist():
                try:
                    yield float(json.loads(meta).get(field))
                except (TypeError, ValueError):
                    yield float("nan")
