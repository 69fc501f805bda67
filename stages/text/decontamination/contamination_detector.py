"""Evaluation items out of a corpus: search each document, judge it, write what stays.

    search   a part of the documents -> every place that holds a gram of an item
    judge    grams that are common in the corpus are set aside; how much of which item is there
    write    the documents in order -> documents/, dropped/, matches/, stats.json

A document is contaminated by an item if it holds more than `max_overlap` of the item's grams
(Brown et al. 2020, appendix C, cut and dropped at a single one).
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.data import documents, parquet_parts
from stages.data.documents import Document, Documents
from stages.text.char_spans import complement_spans
from stages.text.decontamination.ngram_index import (
    EvaluationIndex,
    NgramHits,
    Numbers,
    load_searcher,
)
from stages.text.token_counter import WORDS, TokenCounter

CONTAMINATED = "contaminated"
JOINT = "\n\n"  # between the pieces of a document that was cut
SHOWN_MATCHES = 24
SHOWN_AROUND = 80  # characters on each side of a match
SHOWN_SPAN = 400

_PLACES = ("start", "end", "ngram")
SEARCHED = parquet_parts.versioned_schema(
    pa.schema([("units", pa.int64()), *((name, pa.list_(pa.int64())) for name in _PLACES)]),
    "Searched",
    1,
)
"""One row a document: its size in words or tokens, and the places of grams."""
MATCHES = parquet_parts.versioned_schema(
    pa.schema(
        [
            *((name, pa.string()) for name in ("document", "source", "set", "item")),
            ("overlap", pa.float64()),
            ("start", pa.int64()),
            ("end", pa.int64()),
        ]
    ),
    "Matches",
    1,
)

SearchWork = tuple[Path, int, Path, tuple[int, ...], TokenCounter]
"""A Documents artifact, a part of it, the file of grams, the grams' lengths in words, and what
tells the size of a document."""


def search_shard(work: SearchWork, commit: Path) -> None:
    """Search the documents of a part and commit their sizes and the places of grams."""
    from pipeline.atomic_io import write_atomic

    folder, part, ngrams, lengths, counter = work
    rows = []
    for document in Documents(folder).part(part):
        hits = load_searcher(ngrams, lengths).search(document.text)
        places = {name: getattr(hits, name).tolist() if hits else [] for name in _PLACES}
        rows.append({"units": counter.count_text(document.text), **places})
    write_atomic(commit, parquet_parts.encode_part(rows, SEARCHED), durable=False)


def document_frequencies(commits: Sequence[Path], ngrams: int) -> Numbers:
    """How many documents hold each gram, shape (grams,)."""
    counts = np.zeros(ngrams, np.int64)
    for commit in commits:
        column = pq.read_table(commit, columns=["ngram"])["gram"]
        sizes = pc.list_value_length(column).to_numpy()
        documents = np.repeat(np.arange(len(sizes)), sizes)
        once = np.unique(documents * ngrams + _flat(column))
        counts += np.bincount(once % max(ngrams, 1), minlength=ngrams)
    return counts


@dataclass(frozen=True, slots=True)
class ItemMatch:
    """One item in one document."""

    item: int
    overlap: float
    """Share of the item's grams that the document holds."""
    start: int
    """First character of the first gram that was found."""
    end: int
    """One past its last character."""


@dataclass(frozen=True, slots=True)
class Contamination:
    """What a document holds of the items that it holds too much of."""

    overlap: float
    """The largest of any item's."""
    matches: list[ItemMatch]
    spans: npt.NDArray[np.int64]
    """First character and one past the last of each of their grams, shape (H, 2)."""


class ContaminationDetector:
    """Tells contaminated documents from their hits."""

    def __init__(
        self, evaluation: EvaluationIndex, counts: Numbers, most: int | None, max_overlap: float
    ) -> None:
        self.evaluation = evaluation
        self.ignored = np.zeros(len(counts), np.bool_) if most is None else counts > most
        self._sizes = evaluation.sizes(self.ignored)
        self._max_overlap = max_overlap

    @property
    def common(self) -> int:
        """Items of which every gram is ignored: nothing of them is looked for."""
        return int((self._sizes == 0).sum())

    def judge(self, hits: NgramHits) -> Contamination | None:
        """The verdict on a document with these hits; None for one that may stay as it is."""
        ngrams, first = np.unique(hits.ngram, return_index=True)
        counted = ~self.ignored[ngrams]
        ngrams, first = ngrams[counted], first[counted]
        owners = self.evaluation.owners_of_ngrams(ngrams)
        widths = self.evaluation.starts[ngrams + 1] - self.evaluation.starts[ngrams]
        items, place, found = np.unique(owners, return_inverse=True, return_counts=True)
        earliest = np.full(len(items), len(hits.ngram))
        np.minimum.at(earliest, place, np.repeat(first, widths))
        overlap = found / self._sizes[items]
        contaminated = overlap > self._max_overlap
        if not contaminated.any():
            return None
        matches = [
            ItemMatch(item, share, int(hits.start[at]), int(hits.end[at]))
            for item, share, at in zip(
                items[contaminated].tolist(),
                overlap[contaminated].tolist(),
                earliest[contaminated].tolist(),
                strict=True,
            )
        ]
        named = np.repeat(ngrams, widths)[np.isin(owners, items[contaminated])]
        spans = np.stack([hits.start, hits.end], 1)[np.isin(hits.ngram, named)]
        return Contamination(float(overlap.max()), matches, spans)


@dataclass(frozen=True, slots=True)
class Cut:
    """How contaminated documents are cut."""

    margin: int
    """Characters that go on each side of a gram."""
    min_piece: int
    """Characters of a piece that stays, at least."""
    max_cuts: int
    """A document with more cuts is dropped whole."""

    def apply(self, text: str, spans: npt.NDArray[np.int64]) -> str | None:
        """What stays of the text; None if it is to be dropped."""
        starts = np.maximum(spans[:, 0] - self.margin, 0)
        ends = np.minimum(spans[:, 1] + self.margin, len(text))
        rest = complement_spans(starts, ends, len(text))
        if len(rest) - 1 > self.max_cuts:
            return None
        pieces = (text[start:end].strip() for start, end in rest)
        return JOINT.join(piece for piece in pieces if len(piece) >= self.min_piece) or None


@dataclass
class DecontaminationStats:
    """Counts of documents, characters, and tokens or words, by what became of them and by
    evaluation set."""

    counter: TokenCounter = WORDS
    read: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    sets: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    found: set[int] = field(default_factory=set)
    """Items that any document holds too much of."""
    overlaps: list[float] = field(default_factory=list)
    shown: list[dict[str, str]] = field(default_factory=list)

    @property
    def units(self) -> tuple[str, ...]:
        """What is counted, all of which adds up."""
        return "documents", "characters", self.counter.unit

    def enter(self, text: str, units: int, kept: str | None) -> None:
        """Count one document of so many words or tokens and what is left of it; None if it is
        dropped."""
        size = Counter({"documents": 1, "characters": len(text), self.counter.unit: units})
        self.read.update(size)
        if kept is None:
            self.dropped.update(size)
            return
        whole = len(kept) == len(text)
        left = units if whole else self.counter.count_text(kept)
        rest = Counter({"documents": 1, "characters": len(kept), self.counter.unit: left})
        self.kept.update(rest)
        size.subtract(rest)
        self.removed.update(size)
        self.cut += not whole

    def note(
        self, document: Document, contamination: Contamination, evaluation: EvaluationIndex
    ) -> None:
        """Count what a contaminated document holds."""
        self.overlaps.append(contamination.overlap)
        sets = {evaluation.items[match.item].source for match in contamination.matches}
        for name in sets:
            self.sets[name].update({"documents": 1})
        self.found.update(match.item for match in contamination.matches)
        if len(self.shown) < SHOWN_MATCHES:
            worst = max(contamination.matches, key=lambda match: (match.overlap, -match.item))
            item = evaluation.items[worst.item]
            self.shown.append(
                {
                    "evaluation item": f"{item.source}: {item.place}",
                    "overlap": f"{worst.overlap:.0%}",
                    "document": f"{document.source}: {document.id}",
                    "matched": _around(document.text, worst.start, worst.end),
                }
            )

    def stats(self, evaluation: EvaluationIndex) -> dict[str, Any]:
        """The counts as `stats.json` holds them."""
        dropped = self._all(self.dropped)
        return {
            "read": self._all(self.read),
            "kept": self._all(self.kept),
            "dropped": dropped,
            "removed": self._all(self.removed),
            "by_rule": {CONTAMINATED: dropped} if self.dropped else {},
            "by_set": self.by_set(evaluation),
        }

    def _all(self, counts: Counter[str]) -> dict[str, int]:
        return {unit: counts[unit] for unit in self.units}

    def by_set(self, evaluation: EvaluationIndex) -> dict[str, dict[str, int]]:
        """Of each evaluation set: items, those searched for, those found, documents with one."""
        searched = Counter(item.source for item in evaluation.items)
        short = Counter(item.source for item in evaluation.too_short)
        found = Counter(evaluation.items[item].source for item in self.found)
        return {
            name: {
                "items": searched[name] + short[name],
                "searched": searched[name],
                "found": found[name],
                "documents": self.sets[name]["documents"],
            }
            for name in searched
        }


def write(
    folder: Path,
    commits: Sequence[Path],
    detector: ContaminationDetector,
    cut: Cut | None,
    out: Path,
    counter: TokenCounter = WORDS,
) -> DecontaminationStats:
    """Write the documents, kept, cut and dropped, in order, with what matched and the counts."""
    for table in ("documents", "dropped", "matches"):
        shutil.rmtree(out / table, ignore_errors=True)
    stats = DecontaminationStats(counter)
    with (
        documents.documents_writer(out) as kept,
        documents.dropped_writer(out) as dropped,
        parquet_parts.PartWriter(out / "matches", MATCHES) as matches,
    ):
        for document, units, hits in _searched(Documents(folder), commits):
            contamination = detector.judge(hits) if hits else None
            row = {name: getattr(document, name) for name in documents.COLUMNS}
            if contamination is None:
                stats.enter(document.text, units, document.text)
                kept.write(row)
                continue
            stats.note(document, contamination, detector.evaluation)
            for match in _match_rows(document, contamination, detector.evaluation):
                matches.write(match)
            text = cut.apply(document.text, contamination.spans) if cut else None
            stats.enter(document.text, units, text)
            if text is None:
                dropped.write({**row, "rule": CONTAMINATED, "score": contamination.overlap})
            else:
                kept.write({**row, "text": text})
    documents.write_stats(out, stats.stats(detector.evaluation))
    return stats


def _searched(
    read: Documents, commits: Sequence[Path]
) -> Iterator[tuple[Document, int, NgramHits | None]]:
    """The documents in order with their sizes and hits."""
    for part, commit in enumerate(commits):
        table = pq.read_table(commit).combine_chunks()
        start, end, ngram = (_flat(table[name]) for name in _PLACES)
        edges = np.cumsum([0, *pc.list_value_length(table["ngram"]).to_pylist()]).tolist()
        sizes = table["units"].to_pylist()
        for document, units, within in zip(read.part(part), sizes, pairwise(edges), strict=True):
            found = slice(*within)
            hits = NgramHits(start[found], end[found], ngram[found])
            yield document, units, hits if len(hits.ngram) else None


def _flat(column: pa.ChunkedArray) -> Numbers:
    """All lists one after another."""
    numbers: Numbers = column.combine_chunks().flatten().to_numpy()
    return numbers


def _match_rows(
    document: Document, contamination: Contamination, evaluation: EvaluationIndex
) -> Iterator[dict[str, Any]]:
    for match in contamination.matches:
        item = evaluation.items[match.item]
        yield {
            "document": document.id,
            "source": document.source,
            "set": item.source,
            "item": item.place,
            "overlap": match.overlap,
            "start": match.start,
            "end": match.end,
        }


def _around(text: str, start: int, end: int) -> str:
    """The matched words in marks, with some text on both sides."""
    before = text[max(0, start - SHOWN_AROUND) : start]
    after = text[end : end + SHOWN_AROUND]
    return " ".join(f"{before}»{text[start:end][:SHOWN_SPAN]}«{after}".split())
