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
from stages.text.char_spans import complement
from stages.text.decontamination.ngram_index import Evaluation, Hits, Numbers, searcher
from stages.text.token_counter import WORDS, TokenCounter

CONTAMINATED = "contaminated"
JOINT = "\n\n"  # between the pieces of a document that was cut
SHOWN_MATCHES = 24
SHOWN_AROUND = 80  # characters on each side of a match
SHOWN_SPAN = 400

_PLACES = ("start", "end", "gram")
SEARCHED = parquet_parts.versioned(
    pa.schema([("units", pa.int64()), *((name, pa.list_(pa.int64())) for name in _PLACES)]),
    "Searched",
    1,
)
"""One row a document: its size in words or tokens, and the places of grams."""
MATCHES = parquet_parts.versioned(
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
    from pipeline.storage.atomic_io import write_atomic

    folder, part, grams, lengths, counter = work
    rows = []
    for document in Documents(folder).part(part):
        hits = searcher(grams, lengths).search(document.text)
        places = {name: getattr(hits, name).tolist() if hits else [] for name in _PLACES}
        rows.append({"units": counter.count_text(document.text), **places})
    write_atomic(commit, parquet_parts.encode(rows, SEARCHED), durable=False)


def frequencies(commits: Sequence[Path], grams: int) -> Numbers:
    """How many documents hold each gram, shape (grams,)."""
    counts = np.zeros(grams, np.int64)
    for commit in commits:
        column = pq.read_table(commit, columns=["gram"])["gram"]
        sizes = pc.list_value_length(column).to_numpy()
        documents = np.repeat(np.arange(len(sizes)), sizes)
        once = np.unique(documents * grams + _flat(column))
        counts += np.bincount(once % max(grams, 1), minlength=grams)
    return counts


@dataclass(frozen=True, slots=True)
class Match:
    """One item in one document."""

    item: int
    overlap: float
    """Share of the item's grams that the document holds."""
    start: int
    """First character of the first gram that was found."""
    end: int
    """One past its last character."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a document holds of the items that it holds too much of."""

    overlap: float
    """The largest of any item's."""
    matches: list[Match]
    spans: npt.NDArray[np.int64]
    """First character and one past the last of each of their grams, shape (H, 2)."""


class Jury:
    """Tells contaminated documents from their hits."""

    def __init__(
        self, evaluation: Evaluation, counts: Numbers, most: int | None, max_overlap: float
    ) -> None:
        self.evaluation = evaluation
        self.ignored = np.zeros(len(counts), np.bool_) if most is None else counts > most
        self._sizes = evaluation.sizes(self.ignored)
        self._max_overlap = max_overlap

    @property
    def common(self) -> int:
        """Items of which every gram is ignored: nothing of them is looked for."""
        return int((self._sizes == 0).sum())

    def judge(self, hits: Hits) -> Verdict | None:
        """The verdict on a document with these hits; None for one that may stay as it is."""
        grams, first = np.unique(hits.gram, return_index=True)
        counted = ~self.ignored[grams]
        grams, first = grams[counted], first[counted]
        owners = self.evaluation.owners_of(grams)
        widths = self.evaluation.starts[grams + 1] - self.evaluation.starts[grams]
        items, place, found = np.unique(owners, return_inverse=True, return_counts=True)
        earliest = np.full(len(items), len(hits.gram))
        np.minimum.at(earliest, place, np.repeat(first, widths))
        overlap = found / self._sizes[items]
        guilty = overlap > self._max_overlap
        if not guilty.any():
            return None
        matches = [
            Match(item, share, int(hits.start[at]), int(hits.end[at]))
            for item, share, at in zip(
                items[guilty].tolist(),
                overlap[guilty].tolist(),
                earliest[guilty].tolist(),
                strict=True,
            )
        ]
        named = np.repeat(grams, widths)[np.isin(owners, items[guilty])]
        spans = np.stack([hits.start, hits.end], 1)[np.isin(hits.gram, named)]
        return Verdict(float(overlap.max()), matches, spans)


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
        rest = complement(starts, ends, len(text))
        if len(rest) - 1 > self.max_cuts:
            return None
        pieces = (text[start:end].strip() for start, end in rest)
        return JOINT.join(piece for piece in pieces if len(piece) >= self.min_piece) or None


@dataclass
class Tally:
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

    def note(self, document: Document, verdict: Verdict, evaluation: Evaluation) -> None:
        """Count what a contaminated document holds."""
        self.overlaps.append(verdict.overlap)
        sets = {evaluation.items[match.item].source for match in verdict.matches}
        for name in sets:
            self.sets[name].update({"documents": 1})
        self.found.update(match.item for match in verdict.matches)
        if len(self.shown) < SHOWN_MATCHES:
            worst = max(verdict.matches, key=lambda match: (match.overlap, -match.item))
            item = evaluation.items[worst.item]
            self.shown.append(
                {
                    "evaluation item": f"{item.source}: {item.place}",
                    "overlap": f"{worst.overlap:.0%}",
                    "document": f"{document.source}: {document.id}",
                    "matched": _around(document.text, worst.start, worst.end),
                }
            )

    def stats(self, evaluation: Evaluation) -> dict[str, Any]:
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

    def by_set(self, evaluation: Evaluation) -> dict[str, dict[str, int]]:
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
    jury: Jury,
    cut: Cut | None,
    out: Path,
    counter: TokenCounter = WORDS,
) -> Tally:
    """Write the documents, kept, cut and dropped, in order, with what matched and the counts."""
    for table in ("documents", "dropped", "matches"):
        shutil.rmtree(out / table, ignore_errors=True)
    tally = Tally(counter)
    with (
        documents.documents_writer(out) as kept,
        documents.dropped_writer(out) as dropped,
        parquet_parts.PartWriter(out / "matches", MATCHES) as matches,
    ):
        for document, units, hits in _searched(Documents(folder), commits):
            verdict = jury.judge(hits) if hits else None
            row = {name: getattr(document, name) for name in documents.COLUMNS}
            if verdict is None:
                tally.enter(document.text, units, document.text)
                kept.write(row)
                continue
            tally.note(document, verdict, jury.evaluation)
            for match in _match_rows(document, verdict, jury.evaluation):
                matches.write(match)
            text = cut.apply(document.text, verdict.spans) if cut else None
            tally.enter(document.text, units, text)
            if text is None:
                dropped.write({**row, "rule": CONTAMINATED, "score": verdict.overlap})
            else:
                kept.write({**row, "text": text})
    documents.write_stats(out, tally.stats(jury.evaluation))
    return tally


def _searched(
    read: Documents, commits: Sequence[Path]
) -> Iterator[tuple[Document, int, Hits | None]]:
    """The documents in order with their sizes and hits."""
    for part, commit in enumerate(commits):
        table = pq.read_table(commit).combine_chunks()
        start, end, gram = (_flat(table[name]) for name in _PLACES)
        edges = np.cumsum([0, *pc.list_value_length(table["gram"]).to_pylist()]).tolist()
        sizes = table["units"].to_pylist()
        for document, units, within in zip(read.part(part), sizes, pairwise(edges), strict=True):
            found = slice(*within)
            hits = Hits(start[found], end[found], gram[found])
            yield document, units, hits if len(hits.gram) else None


def _flat(column: pa.ChunkedArray) -> Numbers:
    """All lists one after another."""
    numbers: Numbers = column.combine_chunks().flatten().to_numpy()
    return numbers


def _match_rows(
    document: Document, verdict: Verdict, evaluation: Evaluation
) -> Iterator[dict[str, Any]]:
    for match in verdict.matches:
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
