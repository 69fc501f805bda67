"""Counts of a cleaned corpus: documents, characters, and words or tokens, by outcome."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from pipeline import panels
from stages.curation.curation_stats import CurationStats

MAX_TABLE_ROWS = 40


_REPAIR = "repair what the stage's log names, or name other sources"
_EARLIER = "name other sources, or fewer artifacts in `dedup_against`"
_REMEDIES = {
    "broken.json": "write one JSON object per line, or name a file of one JSON array `.json`",
    "broken.text_column": "set `text_column` to the field that contains the text",
    "broken.columns": "give each row the columns of the first line",
    "broken.encoding": "convert the sources to UTF-8, or declare their encoding",
    "empty": "name sources of text, or set `text_column` to the field that contains the text",
    "language": "set `languages` to those of the text, or lower `language_threshold`",
    "exact_duplicate_earlier": _EARLIER,
    "near_duplicate_earlier": _EARLIER,
    "repeated_text": "lower `dedup.min_remaining`",
}
"""Remedy by the reason of a drop that is not a rule with a limit."""


@dataclass
class CleaningStats(CurationStats):
    """Counts of documents, characters, and tokens or words, by outcome (kept, dropped,
    removed)."""

    record_noun: ClassVar[str] = "documents"
    unit: str = "words"
    """Unit counted next to documents and characters: `words` or `tokens`."""
    by_language: defaultdict[str, Counter[str]] = field(
        default_factory=lambda: defaultdict(Counter)
    )
    masked: Counter[str] = field(default_factory=Counter)
    """Number of masked spans, by entity."""
    changed: Counter[str] = field(default_factory=Counter)
    """Characters removed by repair and edits."""
    lengths: list[int] = field(default_factory=list)
    """Characters of each kept document."""

    @property
    def units(self) -> tuple[str, ...]:
        """The units that are counted; each of them adds up."""
        return "documents", "characters", self.unit

    def record(self, row: dict[str, Any], rule: str) -> None:
        """Count one document, kept if `rule` is empty, else dropped by it."""
        size = {"characters": len(row["text"]), self.unit: row["units"]}
        self.count(row["source"], rule, {"documents": 1, **size})
        removed = row.get("removed", {"characters": 0, "units": 0})
        self.count_removed({"characters": removed["characters"], self.unit: removed["units"]})
        self.masked.update(json.loads(row["masked"]))
        self.changed.update(json.loads(row["changed"]))
        language = self.by_language[row["lang"]]
        language["read"] += 1
        if rule:
            if rule.startswith("broken."):
                self.count_broken(*_broken_place(row, rule))
            return
        language["kept"] += 1
        self.lengths.append(size["characters"])
        for table in (self.by_source[row["source"]], language):
            table.update(size)

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as `stats.json` stores them."""
        return {
            "read": self._all_units(self.read),
            "kept": self._all_units(self.kept),
            "dropped": self.dropped(),
            "removed": self._all_units(self.removed),
            "by_rule": {rule: self._all_units(counts) for rule, counts in self.by_rule.items()},
            "by_source": self._columns_of(self.by_source),
            "masked": dict(self.masked),
            "source_characters": self.read["characters"] + self.changed.total(),
            "taken_out": dict(self.changed),
            "by_language": self._columns_of(self.by_language),
        }

    def empty_remedy(self) -> str:
        """Return the remedy against the rule that dropped the most documents."""
        worst = max(self.by_rule, key=lambda rule: self.by_rule[rule]["documents"], default="empty")
        limit = f"loosen `limits.{worst}`, or name other sources"
        return _REMEDIES.get(worst, _REPAIR if worst.startswith("broken.") else limit)

    def _all_units(self, counts: Counter[str]) -> dict[str, int]:
        return {unit: counts[unit] for unit in self.units}

    @property
    def _columns(self) -> tuple[str, ...]:
        """Counts per source or language: documents read and kept, and the size of the kept ones."""
        return "read", "kept", "characters", self.unit

    def _columns_of(self, rows: Mapping[str, Counter[str]]) -> dict[str, dict[str, int]]:
        return {
            name: {column: counts[column] for column in self._columns}
            for name, counts in rows.items()
        }

    def report_panels(self) -> Iterator[panels.Panel]:
        """Yield the report's panels of counts."""
        for unit in self.units:
            steps = self.waterfall_steps(unit, "repeated text")
            if unit == "characters":
                edits = [(name, -number) for name, number in self.changed.items()]
                steps = [("read", self.read[unit] + self.changed.total()), *edits, *steps[1:]]
            yield panels.waterfall(f"Cleaning: {unit}", unit, steps)
        yield self._table("Sources", "source", self.by_source)
        yield self._table("Languages", "language", self.by_language)
        yield from self.broken_panels()
        if self.masked:
            rows = sorted(self.masked.items(), key=lambda item: -item[1])
            yield panels.table("Masked", ("entity", "times"), rows)
        edges = [10 ** (k / 4) for k in range(8, 29)]
        counts, _ = np.histogram(self.lengths, edges)
        yield panels.histogram("Characters per kept document", edges, counts.tolist())

    def _table(self, title: str, name: str, rows: Mapping[str, Counter[str]]) -> panels.Panel:
        ordered = sorted(rows.items(), key=lambda item: (-item[1]["characters"], item[0]))
        return panels.table(
            title,
            (name, "read", "kept", "characters kept", f"{self.unit} kept"),
            [
                (key, *(counts[column] for column in self._columns))
                for key, counts in ordered[:MAX_TABLE_ROWS]
            ],
        )


def _broken_place(row: dict[str, Any], rule: str) -> tuple[str, str]:
    """Return the place of a broken record (file, line or row) and the reason."""
    meta = json.loads(row["meta"])
    at = [f"{key} {meta[key]}" for key in ("line", "row", "offset") if key in meta]
    reason = meta.get("error") or rule.removeprefix("broken.")
    return " ".join([row["source"] + "/" + meta["place"], *at]), reason
