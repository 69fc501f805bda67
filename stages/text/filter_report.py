"""What people look at to judge the rules: how every score is spread, which documents lie on either
side of a limit, and a sample of texts to search."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import panels as draw
from stages.data.hashing import hash_fraction
from stages.text.filter_decisions import FilterDecisions
from stages.text.rules.catalogue import Limit

BINS = 24
SPREAD = (0.5, 99.5)  # percent of the scores that a histogram covers; the rest is in its end bins
BORDERS = 12  # rules whose bordering documents are shown
SHOWN = 400  # characters of a text beside another
BROWSED = 200  # documents that can be searched
READ = 1_200  # characters of each


class FilterReport:
    """Chooses documents by their figures alone, then takes them as they pass by."""

    def __init__(self, decisions: FilterDecisions, limits: Mapping[str, Limit]) -> None:
        self._decisions = decisions
        self._limits = limits
        self._borders = list(_borders(decisions, limits))
        self._browsed = set(_chosen(len(decisions.failed)))
        self._wanted = self._browsed.union(*(pair for _, *pair in self._borders))
        self._seen: dict[int, dict[str, Any]] = {}
        self._reasons: dict[int, str] = {}

    def observe(self, number: int, row: dict[str, Any], reason: str) -> None:
        """A document passes by on its way to what is kept or dropped."""
        if number in self._wanted:
            self._seen[number] = {**row, "text": row["text"][:READ]}
            self._reasons[number] = reason

    def panels(self) -> Iterator[draw.Panel]:
        """Histograms, documents on either side of a limit, and the browser."""
        yield from self._histograms()
        items = [
            {
                "rule": f"{rule}, {self._limits[rule]}",
                "the best that it dropped": self._example(dropped, rule),
                "the worst that was kept": self._example(kept, rule),
            }
            for rule, dropped, kept in self._borders
        ]
        if items:
            yield draw.samples("On either side of a limit", items)
        browsed = [self._item(number) for number in sorted(self._browsed & set(self._seen))]
        if browsed:
            yield draw.browser("Documents, kept and dropped: a sample", browsed)

    def _histograms(self) -> Iterator[draw.Panel]:
        for at, rule in enumerate(self._decisions.rules):
            scores = self._decisions.scores[:, at]
            scores = scores[np.isfinite(scores)]
            if not len(scores):
                continue
            limit = self._limits.get(rule, Limit())
            ends = [end for end in (limit.low, limit.high) if np.isfinite(end)]
            edges = _edges(scores)
            counts, _ = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)
            yield draw.histogram(
                rule,
                edges.tolist(),
                counts.tolist(),
                thresholds=ends,
                group="The scores of every rule, with its limits",
            )

    def _example(self, number: int, rule: str) -> str:
        if number not in self._seen:
            return "-"
        score = self._decisions.scores[number, self._decisions.rules.index(rule)]
        return f"{score:.4g}: {' '.join(self._seen[number]['text'][:SHOWN].split())}"

    def _item(self, number: int) -> dict[str, str]:
        row = self._seen[number]
        place = json.loads(row["meta"]).get("place", row["id"])
        return {
            "verdict": self._reasons[number] or "kept",
            "lang": row["lang"],
            "place": f"{row['source']}/{place}",
            "text": row["text"],
        }


def _chosen(documents: int) -> Iterator[int]:
    """About `BROWSED` documents, by the hash of their numbers."""
    for number in range(documents):
        if hash_fraction(f"shown {number}") * documents < BROWSED:
            yield number


def _borders(
    decisions: FilterDecisions, limits: Mapping[str, Limit]
) -> Iterator[tuple[str, int, int]]:
    """Of the rules that dropped most: the dropped and the kept document nearest to the limit; -1
    where no document was kept."""
    names, counts = np.unique(decisions.failed[decisions.failed != ""], return_counts=True)
    most = [str(names[at]) for at in np.argsort(-counts, kind="stable")]
    for rule in [rule for rule in most if rule in limits][:BORDERS]:
        scores = decisions.scores[:, decisions.rules.index(rule)]
        beyond = _beyond(scores, limits[rule])
        dropped = np.where(decisions.failed == rule, beyond, np.inf)
        kept = np.where(decisions.passed & ~np.isnan(scores), beyond, -np.inf)
        worst = int(np.argmax(kept)) if np.isfinite(kept).any() else -1
        yield rule, int(np.argmin(dropped)), worst


def _beyond(scores: npt.NDArray[np.float64], limit: Limit) -> npt.NDArray[np.float64]:
    """How far a score is outside its range; negative inside."""
    return np.maximum(limit.low - scores, scores - limit.high)


def _edges(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Equal bins over most of the scores; growing ones where they span orders of magnitude."""
    low, high = np.percentile(scores, SPREAD)
    if low == high:
        low, high = low - 0.5, high + 0.5
    if 0 < 100 * low < high:
        return np.geomspace(low, high, BINS + 1)
    return np.linspace(low, high, BINS + 1)
