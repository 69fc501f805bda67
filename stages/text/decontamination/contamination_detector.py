"""Contaminated documents: the share of evaluation items that they contain, and what to remove.

A document is contaminated by an item if it contains more than `max_overlap` of the item's n-grams
(Brown et al. 2020, appendix C, where a single one suffices). N-grams that are common in the corpus
are ignored, except in a document that contains all n-grams of the item: many copies of an item do
not make it common speech.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.text.char_spans import complement_spans
from stages.text.decontamination.ngram_index import EvaluationIndex, NgramHits, Numbers

SEPARATOR = "\n\n"  # between the remaining pieces of a document


@dataclass(frozen=True, slots=True)
class ItemMatch:
    """One evaluation item in one document."""

    item: int
    """Position in `EvaluationIndex.items`."""
    overlap: float
    """Share of the item's n-grams that the document contains."""
    start: int
    """First character of the first n-gram found."""
    end: int
    """One past its last character."""


@dataclass(frozen=True, slots=True)
class Contamination:
    """The items that contaminate a document."""

    overlap: float
    """Largest overlap of any item."""
    matches: list[ItemMatch]
    spans: npt.NDArray[np.int64]
    """First character and one past the last of each of their n-grams, shape (H, 2)."""


class ContaminationDetector:
    """Detector of contaminated documents by their n-grams.

    Args:
        index: items and n-grams of the evaluation sets.
        frequencies: number of documents that contain each n-gram, shape (G,).
        max_document_frequency: n-grams in more documents are ignored; None ignores none.
        max_overlap: share of an item's n-grams that a document may contain.
    """

    def __init__(
        self,
        index: EvaluationIndex,
        frequencies: Numbers,
        max_document_frequency: int | None,
        max_overlap: float,
    ) -> None:
        self.index = index
        self.ignored = np.zeros(len(frequencies), np.bool_)
        if max_document_frequency is not None:
            self.ignored = frequencies > max_document_frequency
        self._sizes = index.sizes(self.ignored)
        self._whole_sizes = index.sizes(np.zeros_like(self.ignored))
        self._max_overlap = max_overlap

    @property
    def common_items(self) -> int:
        """Number of items whose n-grams are all ignored; only whole copies of them are found."""
        return int((self._sizes == 0).sum())

    def detect(self, hits: NgramHits) -> Contamination | None:
        """Return the contamination of a document with these n-grams, or None if it is clean."""
        ngrams, first = np.unique(hits.ngram, return_index=True)
        owners = self.index.owners_of_ngrams(ngrams)
        widths = self.index.starts[ngrams + 1] - self.index.starts[ngrams]
        items, place, found = np.unique(owners, return_inverse=True, return_counts=True)
        whole = found == self._whole_sizes[items]
        counted = np.repeat(~self.ignored[ngrams], widths) | whole[place]
        earliest = np.full(len(items), len(hits.ngram))
        np.minimum.at(earliest, place[counted], np.repeat(first, widths)[counted])
        sizes = np.where(whole, self._whole_sizes[items], np.maximum(self._sizes[items], 1))
        overlap = np.bincount(place[counted], minlength=len(items)) / sizes
        contaminating = overlap > self._max_overlap
        if not contaminating.any():
            return None
        matches = [
            ItemMatch(item, share, int(hits.start[at]), int(hits.end[at]))
            for item, share, at in zip(
                items[contaminating].tolist(),
                overlap[contaminating].tolist(),
                earliest[contaminating].tolist(),
                strict=True,
            )
        ]
        matched = np.repeat(ngrams, widths)[counted & contaminating[place]]
        spans = np.stack([hits.start, hits.end], 1)[np.isin(hits.ngram, matched)]
        return Contamination(float(overlap.max()), matches, spans)


@dataclass(frozen=True, slots=True)
class SpanRemoval:
    """Removal of matched n-grams with a margin, from documents that stay."""

    margin: int
    """Characters removed on each side of an n-gram."""
    min_piece: int
    """Minimum length of a remaining piece, characters."""
    max_cuts: int
    """Maximum number of removed spans; a document with more is dropped."""

    def apply(self, text: str, spans: npt.NDArray[np.int64]) -> str | None:
        """Return the remaining text, or None if the document is to be dropped."""
        starts = np.maximum(spans[:, 0] - self.margin, 0)
        ends = np.minimum(spans[:, 1] + self.margin, len(text))
        rest = complement_spans(starts, ends, len(text))
        if len(rest) - 1 > self.max_cuts:
            return None
        pieces = (text[start:end].strip() for start, end in rest)
        return SEPARATOR.join(piece for piece in pieces if len(piece) >= self.min_piece) or None
