"""Counts of a cleaned corpus: documents, characters, and words or tokens, by what became of them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline import panels as draw

MAX_BROKEN_PLACES = 40
MAX_TABLE_ROWS = 40


@dataclass
class CleaningStats:
    """Counts of documents, characters, and tokens or words, by what became of them."""

    unit: str = "words"
    """What is counted besides documents and characters: `words` or `tokens`."""
    read: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    """Counts of the text removed from kept documents."""
    rules: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Counts of dropped documents, by rule."""
    sources: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    languages: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    broken: int = 0
    """Number of broken records and files."""
    broken_places: list[str] = field(default_factory=list)
    """The first `MAX_BROKEN_PLACES` of them, each with its reason."""
    masked: Counter[str] = field(default_factory=Counter)
    """Number of masked spans, by entity."""
    changed: Counter[str] = field(default_factory=Counter)
    """Characters removed by repair and edits."""
    lengths: list[int] = field(default_factory=list)
    """Characters of each kept document."""

    def record(self, row: dict[str, Any], rule: str) -> None:
        """Count one document, kept if `rule` is empty, else dropped by it."""
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
                if len(self.broken_places) < MAX_BROKEN_PLACES:
                    self.broken_places.append(_broken_place(row, rule))
            return
        self.kept.update(size)
        self.lengths.append(size["characters"])
        for table in (self.sources[row["source"]], self.languages[row["lang"]]):
            table.update({"kept": 1, "characters": size["characters"], self.unit: row["units"]})

    @property
    def units(self) -> tuple[str, ...]:
        """The units that are counted; each of them adds up."""
        return "documents", "characters", self.unit

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as `stats.json` stores them."""
        dropped = {unit: sum(counts[unit] for counts in self.rules.values()) for unit in self.units}
        return {
            "read": self._all_units(self.read),
            "kept": self._all_units(self.kept),
            "dropped": dropped,
            "removed": self._all_units(self.removed),
            "by_rule": {rule: self._all_units(counts) for rule, counts in self.rules.items()},
            "by_source": self._columns_of(self.sources),
            "masked": dict(self.masked),
            "source_characters": self.read["characters"] + self.changed.total(),
            "taken_out": dict(self.changed),
            "by_language": self._columns_of(self.languages),
        }

    def _all_units(self, counts: Counter[str]) -> dict[str, int]:
        return {unit: counts[unit] for unit in self.units}

    @property
    def _columns(self) -> tuple[str, ...]:
        """Counts per source or language: documents read and kept, and the size of the kept ones."""
        return "read", "kept", "characters", self.unit

    def _columns_of(self, rows: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
        return {
            name: {column: counts[column] for column in self._columns}
            for name, counts in rows.items()
        }

    def panels(self) -> Iterator[draw.Panel]:
        """Yield the report's panels of counts."""
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
            yield draw.table(title, ("place and reason",), places)
        if self.masked:
            rows = sorted(self.masked.items(), key=lambda item: -item[1])
            yield draw.table("Masked", ("entity", "times"), rows)
        edges = [10 ** (k / 4) for k in range(8, 29)]
        counts, _ = np.histogram(self.lengths, edges)
        yield draw.histogram("Characters per kept document", edges, counts.tolist())

    def _table(self, title: str, name: str, rows: dict[str, Counter[str]]) -> draw.Panel:
        ordered = sorted(rows.items(), key=lambda item: (-item[1]["characters"], item[0]))
        return draw.table(
            title,
            (name, "read", "kept", "characters kept", f"{self.unit} kept"),
            [
                (key, *(counts[column] for column in self._columns))
                for key, counts in ordered[:MAX_TABLE_ROWS]
            ],
        )


def _broken_place(row: dict[str, Any], rule: str) -> str:
    """Return file, line or row, and the reason."""
    meta = json.loads(row["meta"])
    at = [f"{key} {meta[key]}" for key in ("line", "row", "offset") if key in meta]
    reason = meta.get("error") or rule.removeprefix("broken.")
    return f"{' '.join([row['source'] + '/' + meta['place'], *at])}: {reason}"
