"""The n-grams of evaluation sets, and where a document contains any of them.

An item is the text of one field of one record. Its words are folded as for near-duplicate search:
case, accents, values of digits and outer punctuation do not count; a character of a script without
spaces is a word of its own. An item of fewer words than the n-gram is one n-gram of all its words;
one of fewer than `MIN_WORDS` words is indistinguishable from common speech and is not searched.

    ngrams.npy    the hashes, sorted: all that a worker needs
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError
from stages.curation.broken_files import BrokenFile
from stages.text.sources.readers import read
from stages.text.sources.source_file import SourceFile
from stages.text.sources.source_listing import list_files
from stages.text.unicode_repair import repair
from stages.text.words.word_table import (
    Hashes,
    WordArrays,
    ngram_hashes,
    shared_word_table,
    word_spans,
)

MIN_WORDS = 8  # words of an item: GPT-3's least n
NAME_FIELDS = "name the fields that contain its texts in text_columns"
_FIELDED = (".jsonl", ".csv", ".parquet")
_FILTER_BITS_PER_NGRAM = 16
_LARGEST_FILTER = 28  # log2 of its slots: a quarter of a gigabyte

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EvaluationItem:
    """One text that must not be trained on."""

    source: str
    """The evaluation set."""
    place: str
    """Name of file, record and field."""


@dataclass(frozen=True)
class EvaluationIndex:
    """All items and their n-grams."""

    items: list[EvaluationItem]
    too_short: list[EvaluationItem]
    """Items of fewer than `MIN_WORDS` words."""
    lengths: tuple[int, ...]
    """Words in an n-gram: n, and the lengths of shorter items."""
    ngrams: Hashes
    """Distinct, sorted, shape (G,)."""
    starts: Numbers
    """N-gram g belongs to `owners[starts[g]:starts[g + 1]]`, shape (G + 1,)."""
    owners: Numbers
    """Positions in `items`, shape (P,)."""

    def owners_of_ngrams(self, ngrams: Numbers) -> Numbers:
        """Return the items of each of these n-grams, concatenated."""
        counts = self.starts[ngrams + 1] - self.starts[ngrams]
        first = np.repeat(self.starts[ngrams] - np.cumsum(counts) + counts, counts)
        owners: Numbers = self.owners[first + np.arange(counts.sum())]
        return owners

    def sizes(self, ignored: npt.NDArray[np.bool_]) -> Numbers:
        """Count the distinct n-grams of each item that are not ignored, shape (items,)."""
        return np.bincount(
            self.owners_of_ngrams(np.flatnonzero(~ignored)), minlength=len(self.items)
        ).astype(np.int64)


def read_evaluation_sets(sets: Sequence[str], fields: Sequence[str], n: int) -> EvaluationIndex:
    """Read the sets' items and divide them into n-grams.

    Raises:
        InputError: a set cannot be read in full, or contains nothing that can be searched, because
            a misspelled field must not look like a clean corpus.
    """
    items: list[EvaluationItem] = []
    short: list[EvaluationItem] = []
    lengths: set[int] = set()
    found: list[Hashes] = []
    for name in sets:
        before = len(items)
        for item, text in _file_items(list_files([name]), fields):
            folded = _searchable_words(shared_word_table().words(repair(text)))[0]
            if len(folded) < MIN_WORDS:
                short.append(item)
                continue
            lengths.add(min(n, len(folded)))
            items.append(item)
            found.append(np.unique(ngram_hashes(folded, min(n, len(folded)))))
        if len(items) == before:
            raise InputError(
                f"evaluation set {name!r} has no item of at least {MIN_WORDS} words",
                where="eval_sets",
                remedy=NAME_FIELDS,
            )
    hashes = np.concatenate(found)
    owners = np.repeat(np.arange(len(items)), [len(ngrams) for ngrams in found])
    order = np.lexsort((owners, hashes))
    distinct, starts = np.unique(hashes[order], return_index=True)
    starts = np.r_[starts, len(hashes)]
    return EvaluationIndex(items, short, tuple(sorted(lengths)), distinct, starts, owners[order])


def _file_items(
    files: Sequence[SourceFile], fields: Sequence[str]
) -> Iterator[tuple[EvaluationItem, str]]:
    for file in files:
        fielded = file.is_dataset or any(suffix in file.place.lower() for suffix in _FIELDED)
        present, absent = 0, None
        for field in fields if fielded else ("",):
            try:
                for item, text in _field_items(file, field):
                    present += 1
                    yield item, text
            except BrokenFile:
                raise
            except InputError as error:
                absent = error
        if not present:
            raise absent or InputError(
                f"no record has a text in {' or '.join(fields)}",
                where=file.display_path,
                remedy=NAME_FIELDS,
            )


def _field_items(file: SourceFile, field: str) -> Iterator[tuple[EvaluationItem, str]]:
    """Yield the items in one field of a file's records, without records that lack the field."""
    for number, raw in enumerate(read(file, field), file.first_record + 1):
        if raw.broken and raw.broken != "broken.text_column":
            raise BrokenFile(
                f"record {number} of an evaluation set cannot be read ({raw.broken})",
                where=file.display_path,
                remedy="repair the file: what is not read is not searched for",
            )
        if not raw.broken:
            yield EvaluationItem(file.source, f"{file.place} {number} {field}".rstrip()), raw.text


def _searchable_words(words: WordArrays) -> tuple[Hashes, Numbers]:
    """Return the words that are more than punctuation, and their positions among all."""
    positions = np.flatnonzero(words.folded)
    return words.folded[positions], positions


def save_ngrams(evaluation: EvaluationIndex, path: Path) -> None:
    """Write the n-grams for `load_searcher`."""
    from pipeline.atomic_io import write_atomic

    buffer = io.BytesIO()
    np.save(buffer, evaluation.ngrams)
    write_atomic(path, buffer.getvalue(), durable=False)


@dataclass(frozen=True, slots=True)
class NgramHits:
    """Places of n-grams in a document; arrays of shape (H,), in the order of the text."""

    start: Numbers
    """First character."""
    end: Numbers
    """One past the last character."""
    ngram: Numbers
    """Position in `EvaluationIndex.ngrams`."""


class NgramSearcher:
    """Finder of the n-grams of evaluation items in documents."""

    def __init__(self, ngrams: Hashes, lengths: Sequence[int]) -> None:
        self._grams = ngrams
        self._lengths = lengths
        bits = min(_LARGEST_FILTER, (len(ngrams) * _FILTER_BITS_PER_NGRAM).bit_length())
        self._mask = np.uint64((1 << bits) - 1)
        self._filter = np.zeros(1 << bits, np.bool_)
        self._filter[ngrams & self._mask] = True

    def search(self, text: str) -> NgramHits | None:
        """Return all places of n-grams in a text, or None if it has no n-gram."""
        folded, positions = _searchable_words(shared_word_table().words(text))
        first, last, ngram = [], [], []
        for n in self._lengths:
            at, rank = self._lookup(ngram_hashes(folded, n))
            first.append(positions[at])
            last.append(positions[at + n - 1])
            ngram.append(rank)
        if not sum(map(len, first)):
            return None
        spans = np.array(word_spans(text))
        start, end = spans[np.concatenate(first), 0], spans[np.concatenate(last), 1]
        order = np.lexsort((end, start))
        return NgramHits(start[order], end[order], np.concatenate(ngram)[order])

    def _lookup(self, hashes: Hashes) -> tuple[Numbers, Numbers]:
        """Return the positions of hashes that are n-grams, and which ones; most fail the filter."""
        at = np.flatnonzero(self._filter[hashes & self._mask])
        rank = np.searchsorted(self._grams, hashes[at])
        known = self._grams[np.minimum(rank, len(self._grams) - 1)] == hashes[at]
        return at[known], rank[known]


@lru_cache(1)
def load_searcher(ngrams: Path, lengths: tuple[int, ...]) -> NgramSearcher:
    """Return the searcher for a saved file of n-grams, built once per process."""
    return NgramSearcher(np.load(ngrams), lengths)
