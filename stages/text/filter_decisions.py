"""Which rule each document fails, from the figures that judging left: no text is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages.text.rules.catalogue import Limit
from stages.text.rules.rule_scorer import first_failures


@dataclass(frozen=True)
class FilterLimits:
    """What documents must be like."""

    languages: tuple[str, ...]
    language_score: float
    limits: Mapping[str, Limit]


@dataclass(frozen=True)
class FilterDecisions:
    """What became of N documents, before copies are looked for."""

    rules: list[str]
    """The rules that were measured, R of them."""
    scores: npt.NDArray[np.float64]
    """Shape (N, R); NaN where a rule means nothing."""
    failed: npt.NDArray[np.object_]
    """The first rule that a document failed, shape (N,); empty for one that passed."""
    by: npt.NDArray[np.float64]
    """The score that it failed by."""

    @property
    def passed(self) -> npt.NDArray[np.bool_]:
        """Which documents failed nothing."""
        return np.asarray(self.failed == "")


def apply_filters(
    commits: Sequence[Path], documents: int, rules: Sequence[str], filters: FilterLimits
) -> FilterDecisions:
    """Judge the first `documents` documents of the shards."""
    columns = ["broken", "lang", "confidence", "scores"]
    table = pa.concat_tables(pq.read_table(commit, columns=columns) for commit in commits)
    table = table.slice(0, documents)
    scores = _matrix(table["scores"], len(rules))
    first = first_failures(scores, rules, filters.limits)
    failed = np.array(["", *rules], object)[first + 1]
    by = np.zeros(len(failed))
    out = np.flatnonzero(first >= 0)
    by[out] = scores[out, first[out]]
    for name, rows, score in _preconditions(table, filters):
        failed[rows], by[rows] = name[rows], score[rows]
    return FilterDecisions(list(rules), scores, failed, by)


Columns = tuple[npt.NDArray[Any], npt.NDArray[np.bool_], npt.NDArray[np.float64]]


def _preconditions(table: pa.Table, filters: FilterLimits) -> Iterator[Columns]:
    """What is asked before the rules, the first question last: each with its name, the rows that
    fail it, and their scores."""
    confidence = table["confidence"].to_numpy()
    if filters.languages:
        foreign = ~np.isin(table["lang"].to_numpy(), filters.languages)
        foreign |= confidence < filters.language_score
        yield np.full(len(foreign), "language", object), foreign, confidence
    broken = table["broken"].to_numpy()
    yield broken, broken != "", np.zeros(len(broken))


def _matrix(column: pa.ChunkedArray, rules: int) -> npt.NDArray[np.float64]:
    """Lists of one figure a rule as rows; NaN for the documents that have none."""
    rows = np.full((len(column), rules), np.nan)
    scored = column.is_valid().to_numpy()
    flat = column.drop_null().combine_chunks().flatten().to_numpy()
    rows[scored] = flat.reshape(np.count_nonzero(scored), rules)
    return rows
