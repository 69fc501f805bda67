"""Report panels for filters and deduplication: score histograms, borderline documents, groups of
copies, the first document that each rule dropped, and a searchable sample.

Documents are chosen from their scores before they are written, and stored as they pass by.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import panels as draw
from stages.data.hashing import hash_fraction
from stages.text.dedup.duplicates import Duplicates
from stages.text.filter_decisions import FilterDecisions
from stages.text.rules.catalogue import Limit

BINS = 24
HISTOGRAM_RANGE = (0.5, 99.5)  # percentiles of the scores; the rest is in the end bins
MAX_BORDERS = 12  # rules with borderline documents
MAX_GROUPS = 8  # groups of copies
MAX_DROPPED = 24  # rules with their first dropped document
SAMPLE_SIZE = 200  # documents that can be searched
SAMPLE_CHARACTERS = 1_200  # of each document in the sample
BORDER_CHARACTERS = 400
EXCERPT_CHARACTERS = 200


class FilterReport:
    """Collector of example documents: chosen by their scores alone, stored as they are written."""

    def __init__(
        self, decisions: FilterDecisions, limits: Mapping[str, Limit], duplicates: Duplicates
    ) -> None:
        self._decisions = decisions
        self._limits = limits
        self._survivor = duplicates.survivor.tolist()
        self._groups = _largest_groups(duplicates)
        self._first_dropped: dict[str, dict[str, str]] = {}
        self._borders = list(_borderline_documents(decisions, limits))
        self._sample = set(_sample_numbers(len(decisions.failed)))
        self._wanted = self._sample.union(*(pair for _, *pair in self._borders))
        self._rows: dict[int, dict[str, Any]] = {}
        self._reasons: dict[int, str] = {}

    def observe(self, number: int, row: dict[str, Any], rule: str, score: float) -> None:
        """Store what the report shows of a document, kept if `rule` is empty."""
        if group := self._groups.get(self._survivor[number]):
            group["kept" if self._survivor[number] == number else "dropped"] = _excerpt(row)
        if rule and rule not in self._first_dropped and len(self._first_dropped) < MAX_DROPPED:
            self._first_dropped[rule] = {"rule": f"{rule} = {score:.3g}", "text": _excerpt(row)}
        if number in self._wanted:
            self._rows[number] = {**row, "text": row["text"][:SAMPLE_CHARACTERS]}
            self._reasons[number] = rule

    def panels(self) -> Iterator[draw.Panel]:
        """Yield groups of copies, dropped documents, histograms, borderline documents, and the
        searchable sample."""
        if self._groups:
            largest = sorted(self._groups.values(), key=lambda group: -int(group["copies"]))
            yield draw.samples("Largest groups of copies", largest)
        if self._first_dropped:
            items = [self._first_dropped[rule] for rule in sorted(self._first_dropped)]
            yield draw.samples("The first document that each rule dropped", items)
        yield from self._histograms()
        items = [
            {
                "rule": f"{rule}, {self._limits[rule]}",
                "the best dropped document": self._border_text(dropped, rule),
                "the worst kept document": self._border_text(kept, rule),
            }
            for rule, dropped, kept in self._borders
        ]
        if items:
            yield draw.samples("On either side of a limit", items)
        sample = [self._sample_item(number) for number in sorted(self._sample & set(self._rows))]
        if sample:
            yield draw.browser("Documents, kept and dropped: a sample", sample)

    def _histograms(self) -> Iterator[draw.Panel]:
        for at, rule in enumerate(self._decisions.rules):
            scores = self._decisions.scores[:, at]
            scores = scores[np.isfinite(scores)]
            if not len(scores):
                continue
            limit = self._limits.get(rule, Limit())
            ends = [end for end in (limit.low, limit.high) if np.isfinite(end)]
            edges = _bin_edges(scores)
            counts, _ = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)
            yield draw.histogram(
                rule,
                edges.tolist(),
                counts.tolist(),
                thresholds=ends,
                group="Scores of every rule, with its limits",
            )

    def _border_text(self, number: int, rule: str) -> str:
        if number not in self._rows:
            return "-"
        score = self._decisions.scores[number, self._decisions.rules.index(rule)]
        return f"{score:.4g}: {' '.join(self._rows[number]['text'][:BORDER_CHARACTERS].split())}"

    def _sample_item(self, number: int) -> dict[str, str]:
        row = self._rows[number]
        place = json.loads(row["meta"]).get("place", row["id"])
        return {
            "outcome": self._reasons[number] or "kept",
            "lang": row["lang"],
            "place": f"{row['source']}/{place}",
            "text": row["text"],
        }


def _excerpt(row: dict[str, Any]) -> str:
    """Return the beginning of a text with its place."""
    place = json.loads(row["meta"]).get("place", row["id"])
    words = row["text"][: 2 * EXCERPT_CHARACTERS].split()
    return f"{place}: {' '.join(words)[:EXCERPT_CHARACTERS]}"


def _sample_numbers(documents: int) -> Iterator[int]:
    """Yield about `SAMPLE_SIZE` document numbers, chosen by their hashes."""
    for number in range(documents):
        if hash_fraction(f"shown {number}") * documents < SAMPLE_SIZE:
            yield number


def _largest_groups(duplicates: Duplicates) -> dict[int, dict[str, str]]:
    """Return the largest groups of copies, each with its size, by the number of the survivor."""
    survivor, copies = np.unique(duplicates.survivor[duplicates.passed], return_counts=True)
    largest = np.argsort(-copies, kind="stable")[:MAX_GROUPS]
    return {
        int(survivor[at]): {
            "copies": str(copies[at]),
            "kept": "an earlier document",
            "dropped": "-",
        }
        for at in largest
        if copies[at] > 1
    }


def _borderline_documents(
    decisions: FilterDecisions, limits: Mapping[str, Limit]
) -> Iterator[tuple[str, int, int]]:
    """Yield, for the rules that dropped most, the dropped and the kept document nearest to the
    limit; -1 where no document was kept."""
    names, counts = np.unique(decisions.failed[decisions.failed != ""], return_counts=True)
    most = [str(names[at]) for at in np.argsort(-counts, kind="stable")]
    for rule in [rule for rule in most if rule in limits][:MAX_BORDERS]:
        scores = decisions.scores[:, decisions.rules.index(rule)]
        excess = np.maximum(limits[rule].low - scores, scores - limits[rule].high)
        dropped = np.where(decisions.failed == rule, excess, np.inf)
        kept = np.where(decisions.passed & ~np.isnan(scores), excess, -np.inf)
        worst = int(np.argmax(kept)) if np.isfinite(kept).any() else -1
        yield rule, int(np.argmin(dropped)), worst


def _bin_edges(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return equal bins over most of the scores, or geometric ones over orders of magnitude."""
    low, high = np.percentile(scores, HISTOGRAM_RANGE)
    if low == high:
        low, high = low - 0.5, high + 0.5
    if 0 < 100 * low < high:
        return np.geomspace(low, high, BINS + 1)
    return np.linspace(low, high, BINS + 1)
