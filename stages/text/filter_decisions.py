"""Phase 2 of `clean`: the rule that each document fails, from its annotations; no text is read."""

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
    """The languages and limits that documents must satisfy."""

    languages: tuple[str, ...]
    language_threshold: float
    limits: Mapping[str, Limit]


@dataclass(frozen=True)
class FilterDecisions:
    """The outcome of filtering for N documents, before deduplication."""

    rules: list[str]
    """Names of the R rules that were scored."""
    scores: npt.NDArray[np.float64]
    """Shape (N, R); NaN where a rule does not apply."""
    failed: npt.NDArray[np.object_]
    """The first rule that a document failed, shape (N,); empty for one that passed."""
    failing_score: npt.NDArray[np.float64]
    """The score of the failed rule, shape (N,)."""

    @property
    def passed(self) -> npt.NDArray[np.bool_]:
        """Mask of the documents that passed all rules, shape (N,)."""
        return np.asarray(self.failed == "")


def apply_filters(
    annotations: Sequence[Path], documents: int, rules: Sequence[str], filters: FilterLimits
) -> FilterDecisions:
    """Decide on the first `documents` documents of the annotation tables.

    A broken record fails first, then a document in another language, then the first rule whose
    limit its score violates.
    """
    columns = ["broken", "lang", "confidence", "scores"]
    table = pa.concat_tables(pq.read_table(path, columns=columns) for path in annotations)
    table = table.slice(0, documents)
    scores = _score_matrix(table["scores"], len(rules))
    first = first_failures(scores, rules, filters.limits)
    failed = np.array(["", *rules], object)[first + 1]
    failing_score = np.zeros(len(failed))
    dropped = np.flatnonzero(first >= 0)
    failing_score[dropped] = scores[dropped, first[dropped]]
    for name, rows, score in _preconditions(table, filters):
        failed[rows], failing_score[rows] = name[rows], score[rows]
    return FilterDecisions(list(rules), scores, failed, failing_score)


def _preconditions(
    table: pa.Table, filters: FilterLimits
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.bool_], npt.NDArray[np.float64]]]:
    """Yield the conditions that precede the rules, the first one last: names, the rows that fail,
    and their scores, shape (N,) each."""
    confidence = table["confidence"].to_numpy()
    if filters.languages:
        foreign = ~np.isin(table["lang"].to_numpy(), filters.languages)
        foreign |= confidence < filters.language_threshold
        yield np.full(len(foreign), "language", object), foreign, confidence
    broken = table["broken"].to_numpy()
    yield broken, broken != "", np.zeros(len(broken))


def _score_matrix(column: pa.ChunkedArray, rules: int) -> npt.NDArray[np.float64]:
    """Return lists of one score per rule as a matrix (N, rules); NaN for documents without."""
    matrix = np.full((len(column), rules), np.nan)
    scored = column.is_valid().to_numpy()
    flat = column.drop_null().combine_chunks().flatten().to_numpy()
    matrix[scored] = flat.reshape(np.count_nonzero(scored), rules)
    return matrix
