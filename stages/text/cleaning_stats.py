"""The third pass of cleaning: writes what stays and what goes, and counts both."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import panels as draw
from stages.data import documents
from stages.text.dedup.duplicates import DuplicateSearch
from stages.text.filter_decisions import FilterDecisions
from stages.text.filter_report import FilterReport

EXAMPLES = 200  # characters of a text that people are shown
SHOWN_CLUSTERS = 8
SHOWN_DROPPED = 24
SHOWN_BROKEN = 40


@dataclass
class CleaningStats:
    """Counts of documents, characters, and tokens or words, by what became of them."""

    unit: str = "words"
    """What is counted beside documents and characters: words, or tokens."""
    read: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    """Cut out of what was kept."""
    rules: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    sources: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    languages: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    broken: int = 0
    broken_places: list[str] = field(default_factory=list)
    """Those of the first `SHOWN_BROKEN`."""
    masked: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    clusters: dict[int, dict[str, str]] = field(default_factory=dict)
    dropped: dict[str, dict[str, str]] = field(default_factory=dict)

    def record(self, row: dict[str, Any], rule: str, score: float) -> None:
        """Count one document: kept if `rule` is empty, else dropped by it."""
        size = {"documents": 1, "characters": len(row["text"]), self.unit: row["units"]}
        self.read.update(size)
        removed = row.get("removed", {"characters": 0, "units": 0})
        cut = {"characters": removed["characters"], self.unit: removed["units"]}
        self.read.update(cut)
        self.removed.update(cut)
        self.masked.update(json.loads(row["masked"]))
        self.changed.update(json.loads(row["changed"]))
        self.sources[row["source"]].update({"read": 1})
        self.languages[row["lang"]].update({"read": 1})
        if rule:
            self.rules[rule].update(size)
            if rule.startswith("broken."):
                self.broken += 1
                if len(self.broken_places) < SHOWN_BROKEN:
                    self.broken_places.append(_broken_place(row, rule))
            if rule not in self.dropped and len(self.dropped) < SHOWN_DROPPED:
                self.dropped[rule] = {"rule": f"{rule} = {score:.3g}", "text": excerpt(row)}
            return
        self.kept.update(size)
        self.lengths.append(size["characters"])
        for table in (self.sources[row["source"]], self.languages[row["lang"]]):
            table.update({"kept": 1, "characters": size["characters"], self.unit: row["units"]})

    @property
    def units(self) -> tuple[str, ...]:
        """What is counted, all of which adds up."""
        return "documents", "characters", self.unit

    def stats(self) -> dict[str, Any]:
        """The counts as `stats.json` holds them."""
        dropped = {unit: sum(counts[unit] for counts in self.rules.values()) for unit in self.units}
        return {
            "read": self._all(self.read),
            "kept": self._all(self.kept),
            "dropped": dropped,
            "removed": self._all(self.removed),
            "by_rule": {rule: self._all(counts) for rule, counts in self.rules.items()},
            "by_source": self._by(self.sources),
            "masked": dict(self.masked),
            "source_characters": self.read["characters"] + self.changed.total(),
            "taken_out": dict(self.changed),
            "by_language": self._by(self.languages),
        }

    def _all(self, counts: Counter[str]) -> dict[str, int]:
        return {unit: counts[unit] for unit in self.units}

    def panels(self) -> Iterator[draw.Panel]:
        """What the report shows of the cleaning."""
        for unit in self.units:
            losses = sorted(self.rules.items(), key=lambda item: -item[1][unit])
            steps = [("read", self.read[unit]), *((r, -counts[unit]) for r, counts in losses)]
            if unit == "characters":
                edits = [(name, -number) for name, number in self.changed.items()]
                steps = [("read", self.read[unit] + self.changed.total()), *edits, *steps[1:]]
            if self.removed[unit]:
                steps.append(("repeated text", -self.removed[unit]))
            yield draw.waterfall(f"Cleaning: {unit}", unit, [*steps, ("kept", self.kept[unit])])
        yield self._table("Sources", "source", self.sources)
        yield self._table("Languages", "language", self.languages)
        if self.broken:
            places = [(place,) for place in self.broken_places]
            title = f"Broken records and files: {self.broken}"
            yield draw.table(title, ("where and why",), places)
        if self.masked:
            rows = sorted(self.masked.items(), key=lambda item: -item[1])
            yield draw.table("Masked", ("kind", "times"), rows)
        edges = [10 ** (k / 4) for k in range(8, 29)]
        counts, _ = np.histogram(self.lengths, edges)
        yield draw.histogram("Characters of a kept document", edges, counts.tolist())
        if self.clusters:
            largest = sorted(self.clusters.values(), key=lambda c: -int(c["copies"]))
            yield draw.samples("Largest groups of copies", largest)
        if self.dropped:
            items = [self.dropped[rule] for rule in sorted(self.dropped)]
            yield draw.samples("The first document that each rule dropped", items)

    @property
    def _columns(self) -> tuple[str, ...]:
        """Of a source or language: documents read and kept, and how long those kept are."""
        return "read", "kept", "characters", self.unit

    def _by(self, rows: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
        return {
            name: {column: counts[column] for column in self._columns}
            for name, counts in rows.items()
        }

    def _table(self, title: str, name: str, rows: dict[str, Counter[str]]) -> draw.Panel:
        ordered = sorted(rows.items(), key=lambda item: (-item[1]["characters"], item[0]))[:40]
        return draw.table(
            title,
            (name, "read", "kept", "characters kept", f"{self.unit} kept"),
            [(key, *(counts[column] for column in self._columns)) for key, counts in ordered],
        )


def write(
    rows: Iterator[dict[str, Any]],
    unit: str,
    decisions: FilterDecisions,
    duplicates: DuplicateSearch,
    report: FilterReport,
    out: Path,
) -> CleaningStats:
    """Write the documents, kept and dropped, in order, with their counts."""
    for table in ("documents", "dropped"):
        shutil.rmtree(out / table, ignore_errors=True)
    stats = CleaningStats(unit)
    stats.clusters = _shown_clusters(duplicates)
    rules = decisions.rules
    reasons = np.where(decisions.passed, duplicates.copy, decisions.failed).tolist()
    figures = np.where(decisions.passed, duplicates.shared_bands, decisions.by).tolist()
    with (
        documents.documents_writer(out, rules) as kept,
        documents.dropped_writer(out, rules) as dropped,
    ):
        # Rows past the caps were read, and are not part of the corpus.
        for number, (row, rule, score, standing, scores) in enumerate(
            zip(
                rows, reasons, figures, duplicates.survivor.tolist(), decisions.scores, strict=False
            )
        ):
            if standing in stats.clusters:
                stats.clusters[standing]["stays" if standing == number else "goes"] = excerpt(row)
            report.observe(number, row, rule)
            stats.record(row, rule, score)
            document = {name: row[name] for name in documents.COLUMNS}
            if rules:
                document["scores"] = dict(zip(rules, _known(scores), strict=True))
            if rule:
                dropped.write({**document, "rule": rule, "score": score})
            else:
                kept.write(document)
    documents.write_stats(out, stats.stats())
    return stats


def _known(scores: npt.NDArray[np.float64]) -> list[float | None]:
    return [None if score != score else score for score in scores.tolist()]


def excerpt(row: dict[str, Any]) -> str:
    """The beginning of a text with its place."""
    place = json.loads(row["meta"]).get("place", row["id"])
    return f"{place}: {' '.join(row['text'][: 2 * EXAMPLES].split())[:EXAMPLES]}"


def _broken_place(row: dict[str, Any], rule: str) -> str:
    """File, line or row, and the reason."""
    meta = json.loads(row["meta"])
    at = [f"{key} {meta[key]}" for key in ("line", "row", "offset") if key in meta]
    why = meta.get("error") or rule.removeprefix("broken.")
    return f"{' '.join([row['source'] + '/' + meta['place'], *at])}: {why}"


def _shown_clusters(duplicates: DuplicateSearch) -> dict[int, dict[str, str]]:
    """The largest groups, by the number of the document that stays, each with its size."""
    standing, copies = np.unique(duplicates.survivor[duplicates.considered], return_counts=True)
    largest = np.argsort(-copies, kind="stable")[:SHOWN_CLUSTERS]
    return {
        int(standing[at]): {"copies": str(copies[at]), "stays": "an earlier document", "goes": "-"}
        for at in largest
        if copies[at] > 1
    }
