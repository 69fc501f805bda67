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
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError
from stages.curation.broken_files import BrokenFile
from stages.text.sources.readers import read
from stages.text.sources.record_readers import (
    RawRecord,
    RecordFields,
    has_records,
    read_records,
)
from stages.text.sources.source_file import SourceFile
from stages.text.sources.source_listing import list_files
from stages.text.unicode_repair import repair
from stages.text.words.word_borders import word_spans
from stages.text.words.word_table import (
    Hashes,
    WordArrays,
    ngram_hashes,
    shared_word_table,
)

MIN_WORDS = 8  # words of an item: GPT-3's least n
NAME_FIELDS = "name the fields that contain its texts in text_columns"
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
    unused = set(fields)
    for origin, files in groupby(list_files(sets), lambda file: file.origin):
        before = len(items)
        for item, field, text in chain.from_iterable(_file_items(file, fields) for file in files):
            unused.discard(field)
            folded = _searchable_words(shared_word_table().words(repair(text)))[0]
            if len(folded) < MIN_WORDS:
                short.append(item)
                continue
            lengths.add(min(n, len(folded)))
            items.append(item)
            found.append(np.unique(ngram_hashes(folded, min(n, len(folded)))))
        if len(items) == before:
            raise InputError(
                f"evaluation set {sets[origin]!r} has no item of at least {MIN_WORDS} words",
                where="eval_sets",
                remedy=NAME_FIELDS,
            )
    if len(fields) > 1 and unused:
        raise InputError(
            f"no evaluation set has a text in {' or '.join(sorted(unused))}",
            where="text_columns",
            remedy="correct the name, or leave it out",
        )
    hashes = np.concatenate(found)
    owners = np.repeat(np.arange(len(items)), [len(ngrams) for ngrams in found])
    order = np.lexsort((owners, hashes))
    distinct, starts = np.unique(hashes[order], return_index=True)
    starts = np.r_[starts, len(hashes)]
    return EvaluationIndex(items, short, tuple(sorted(lengths)), distinct, starts, owners[order])


def _file_items(
    file: SourceFile, fields: Sequence[str]
) -> Iterator[tuple[EvaluationItem, str, str]]:
    """Yield the items of a file, each with the field that holds it and its text.

    Raises:
        InputError: no record has a text, or one cannot be read.
    """
    present = 0
    for number, record in enumerate(_records(file, fields), file.first_record + 1):
        if record.broken:
            raise _broken_item(file, number, record.broken)
        for field, value in record.values.items():
            try:
                texts = list(_texts_within(value, field))
            except (UnicodeDecodeError, RecursionError) as error:
                raise _broken_item(file, number, f"{field}: {error}") from error
            for element, text in texts:
                present += 1
                place = f"{file.place} {number} {element}".rstrip()
                yield EvaluationItem(file.source, place), field, text
    if not present:
        raise InputError(
            f"no record has a text in {' or '.join(fields)}",
            where=file.display_path,
            remedy=NAME_FIELDS,
        )


def _broken_item(file: SourceFile, number: int, reason: str) -> BrokenFile:
    return BrokenFile(
        f"record {number} of an evaluation set cannot be read ({reason})",
        where=file.display_path,
        remedy="repair the file: what is not read is not searched for",
    )


def _records(file: SourceFile, fields: Sequence[str]) -> Iterator[RawRecord]:
    """Yield the records of a file with these fields; a document is one of a field without name."""
    if not has_records(file):
        for raw in read(file):
            yield RawRecord({"": raw.text}, raw.meta, raw.broken)
        return
    for record in read_records(file, RecordFields(tuple(fields))):
        values = {name: record.values[name] for name in fields if name in record.values}
        yield replace(record, values=values)


def _texts_within(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the texts in a field with their names: itself, or those of a list or object in it, as
    the choices of a question."""
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str):
        yield name, value
    elements = value.items() if isinstance(value, dict) else ()
    for key, item in enumerate(value) if isinstance(value, list) else elements:
        yield from _texts_within(item, f"{name}[{key}]")


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
