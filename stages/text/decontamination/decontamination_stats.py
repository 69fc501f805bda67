"""Counts of a decontaminated corpus, by outcome of the documents and by evaluation set."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, ClassVar

from stages.curation.curation_stats import CurationStats
from stages.data.documents import Document
from stages.text.decontamination.contamination_detector import Contamination
from stages.text.decontamination.ngram_index import EvaluationIndex
from stages.text.token_counter import WORDS, TokenCounter

CONTAMINATED = "contaminated"
MAX_EXAMPLES = 24
CONTEXT_CHARACTERS = 80  # on each side of a match
MATCH_CHARACTERS = 400


@dataclass
class DecontaminationStats(CurationStats):
    """Counts of documents, characters, and tokens or words, and of evaluation items."""

    record_noun: ClassVar[str] = "documents"
    counter: TokenCounter = WORDS
    cut: int = 0
    """Number of kept documents from which text was removed."""
    sets: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Counts by evaluation set."""
    found: set[int] = field(default_factory=set)
    """Items that contaminate any document."""
    overlaps: list[float] = field(default_factory=list)
    """Largest overlap of each contaminated document."""
    examples: list[dict[str, str]] = field(default_factory=list)

    @property
    def units(self) -> tuple[str, ...]:
        """The units that are counted; each of them adds up."""
        return "documents", "characters", self.counter.unit

    def record(self, document: Document, units: int, kept: str | None) -> None:
        """Count one document of so many words or tokens, and its remaining text; None if it is
        dropped."""
        size = {"documents": 1, "characters": len(document.text), self.counter.unit: units}
        if kept is None:
            self.count(document.source, CONTAMINATED, size)
            return
        whole = len(kept) == len(document.text)
        remaining = units if whole else self.counter.count_text(kept)
        rest = {"documents": 1, "characters": len(kept), self.counter.unit: remaining}
        self.count(document.source, "", rest)
        self.count_removed({unit: size[unit] - rest[unit] for unit in self.units})
        self.cut += not whole

    def record_contamination(
        self, document: Document, contamination: Contamination, index: EvaluationIndex
    ) -> None:
        """Count the items in a contaminated document."""
        self.overlaps.append(contamination.overlap)
        for name in {index.items[match.item].source for match in contamination.matches}:
            self.sets[name].update({"documents": 1})
        self.found.update(match.item for match in contamination.matches)
        if len(self.examples) < MAX_EXAMPLES:
            worst = max(contamination.matches, key=lambda match: (match.overlap, -match.item))
            item = index.items[worst.item]
            self.examples.append(
                {
                    "evaluation item": f"{item.source}: {item.place}",
                    "overlap": f"{worst.overlap:.0%}",
                    "document": f"{document.source}: {document.id}",
                    "matched": _match_in_context(document.text, worst.start, worst.end),
                }
            )

    def as_dict(self, index: EvaluationIndex) -> dict[str, Any]:
        """Return the counts as `stats.json` stores them."""
        return {
            "read": self._all_units(self.read),
            "kept": self._all_units(self.kept),
            "dropped": self.dropped(),
            "removed": self._all_units(self.removed),
            "by_rule": {rule: self._all_units(counts) for rule, counts in self.by_rule.items()},
            "by_set": self.by_set(index),
        }

    def _all_units(self, counts: Counter[str]) -> dict[str, int]:
        return {unit: counts[unit] for unit in self.units}

    def by_set(self, index: EvaluationIndex) -> dict[str, dict[str, int]]:
        """Return for each evaluation set its items, those searched, those found, and the number of
        documents with one."""
        searched = Counter(item.source for item in index.items)
        short = Counter(item.source for item in index.too_short)
        found = Counter(index.items[item].source for item in self.found)
        return {
            name: {
                "items": searched[name] + short[name],
                "searched": searched[name],
                "found": found[name],
                "documents": self.sets[name]["documents"],
            }
            for name in searched
        }


def _match_in_context(text: str, start: int, end: int) -> str:
    """Return the matched words in quotation marks, with some text on both sides."""
    before = text[max(0, start - CONTEXT_CHARACTERS) : start]
    after = text[end : end + CONTEXT_CHARACTERS]
    return " ".join(f"{before}»{text[start:end][:MATCH_CHARACTERS]}«{after}".split())
