"""The n-grams of evaluation sets, and where a document holds any of them.

An item is the text of one field of one record. Its words are folded as near-duplicate search folds
them (case, accents, digits' values and outer punctuation do not count; a character of a script
without spaces is a word of its own). An item of fewer words than the n-gram is one gram of all its
words; one of fewer than `SHORTEST` words cannot be told from common speech and is not searched.

    grams.npy    the hashes, sorted: all that a worker needs
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
from stages.text.sources.readers import BrokenFile, read
from stages.text.sources.source_listing import SourceFile, list_files
from stages.text.unicode_repair import repair
from stages.text.words.word_table import (
    Hashes,
    WordArrays,
    ngram_hashes,
    shared_word_table,
    word_spans,
)

SHORTEST = 8  # words of an item: GPT-3's least n
NAME_FIELDS = "name the fields that hold its texts in text_fields"
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
    """File, record and field."""


@dataclass(frozen=True)
class EvaluationIndex:
    """All items and the grams that give them away."""

    items: list[EvaluationItem]
    too_short: list[EvaluationItem]
    """Items of fewer than `SHORTEST` words."""
    lengths: tuple[int, ...]
    """Words of a gram: n, and what items of fewer words have."""
    ngrams: Hashes
    """Distinct, sorted, shape (G,)."""
    starts: Numbers
    """Gram g belongs to `owners[starts[g]:starts[g + 1]]`, shape (G + 1,)."""
    owners: Numbers
    """Positions in `items`, shape (P,)."""

    def owners_of_ngrams(self, ngrams: Numbers) -> Numbers:
        """The items of each of these grams, one after the other."""
        counts = self.starts[ngrams + 1] - self.starts[ngrams]
        first = np.repeat(self.starts[ngrams] - np.cumsum(counts) + counts, counts)
        owners: Numbers = self.owners[first + np.arange(counts.sum())]
        return owners

    def sizes(self, ignored: npt.NDArray[np.bool_]) -> Numbers:
        """How many distinct grams each item has but for the ignored ones, shape (items,)."""
        return np.bincount(
            self.owners_of_ngrams(np.flatnonzero(~ignored)), minlength=len(self.items)
        ).astype(np.int64)


def read_evaluation_sets(sets: Sequence[str], fields: Sequence[str], n: int) -> EvaluationIndex:
    """Read the sets' items and cut them into grams.

    Raises:
        InputError: a set cannot be read in full, or holds nothing that can be searched: a typing
            mistake must not pass for a clean corpus.
    """
    items: list[EvaluationItem] = []
    short: list[EvaluationItem] = []
    lengths: set[int] = set()
    found: list[Hashes] = []
    for name in sets:
        before = len(items)
        for item, text in _items(list_files([name]), fields):
            folded = _searched(shared_word_table().words(repair(text)))[0]
            if len(folded) < SHORTEST:
                short.append(item)
                continue
            lengths.add(min(n, len(folded)))
            items.append(item)
            found.append(np.unique(ngram_hashes(folded, min(n, len(folded)))))
        if len(items) == before:
            raise InputError(
                f"evaluation set {name!r} holds no item of at least {SHORTEST} words",
                where="sets",
                remedy=NAME_FIELDS,
            )
    return _index(items, short, lengths, found)


def _index(
    items: list[EvaluationItem], short: list[EvaluationItem], lengths: set[int], found: list[Hashes]
) -> EvaluationIndex:
    hashes = np.concatenate(found)
    owners = np.repeat(np.arange(len(items)), [len(ngrams) for ngrams in found])
    order = np.lexsort((owners, hashes))
    ngrams, starts = np.unique(hashes[order], return_index=True)
    return EvaluationIndex(
        items, short, tuple(sorted(lengths)), ngrams, np.r_[starts, len(hashes)], owners[order]
    )


def _items(
    files: Sequence[SourceFile], fields: Sequence[str]
) -> Iterator[tuple[EvaluationItem, str]]:
    for file in files:
        fielded = file.is_dataset or any(suffix in file.place.lower() for suffix in _FIELDED)
        present, absent = 0, None
        for field in fields if fielded else ("",):
            try:
                for item, text in _field(file, field):
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


def _field(file: SourceFile, field: str) -> Iterator[tuple[EvaluationItem, str]]:
    """The items in one field of a file's records; those without the field are passed over."""
    before = file.cut.records if file.cut else 0
    for number, raw in enumerate(read(file, field), before + 1):
        if raw.broken and raw.broken != "broken.text_column":
            raise BrokenFile(
                f"record {number} of an evaluation set cannot be read ({raw.broken})",
                where=file.display_path,
                remedy="mend the file: what is not read is not searched for",
            )
        if not raw.broken:
            yield EvaluationItem(file.source, f"{file.place} {number} {field}".rstrip()), raw.text


def _searched(words: WordArrays) -> tuple[Hashes, Numbers]:
    """The words that are more than punctuation, and their positions among all."""
    positions = np.flatnonzero(words.folded)
    return words.folded[positions], positions


def save_ngrams(evaluation: EvaluationIndex, path: Path) -> None:
    """Write what `Searcher` reads."""
    from pipeline.atomic_io import write_atomic

    buffer = io.BytesIO()
    np.save(buffer, evaluation.ngrams)
    write_atomic(path, buffer.getvalue(), durable=False)


@dataclass(frozen=True, slots=True)
class NgramHits:
    """Where a document holds grams; arrays of shape (H,), in the order of the text."""

    start: Numbers
    """First character."""
    end: Numbers
    """One past the last character."""
    ngram: Numbers
    """Position in `Evaluation.grams`."""


class NgramSearcher:
    """Finds grams in documents."""

    def __init__(self, ngrams: Hashes, lengths: Sequence[int]) -> None:
        self._grams = ngrams
        self._lengths = lengths
        bits = min(_LARGEST_FILTER, (len(ngrams) * _FILTER_BITS_PER_NGRAM).bit_length())
        self._mask = np.uint64((1 << bits) - 1)
        self._filter = np.zeros(1 << bits, np.bool_)
        self._filter[ngrams & self._mask] = True

    def search(self, text: str) -> NgramHits | None:
        """All places at which the text holds a gram; None if there are none."""
        folded, positions = _searched(shared_word_table().words(text))
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
        """Positions of the hashes that are grams, and which grams; nearly all fail the filter."""
        at = np.flatnonzero(self._filter[hashes & self._mask])
        rank = np.searchsorted(self._grams, hashes[at])
        known = self._grams[np.minimum(rank, len(self._grams) - 1)] == hashes[at]
        return at[known], rank[known]


@lru_cache(1)
def load_searcher(ngrams: Path, lengths: tuple[int, ...]) -> NgramSearcher:
    """The searcher of a saved file of grams, built once in a process."""
    return NgramSearcher(np.load(ngrams), lengths)
