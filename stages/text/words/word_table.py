"""Words of a text with one split and one hash each, shared by every rule and near-duplicate search.

Compiled kernels find the words and all features of ASCII words; Python processes each distinct
other word once. All that counts, compares or combines words afterwards is array arithmetic.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, chain

import numpy as np
import numpy.typing as npt

from stages.data.hashing import GOLDEN_GAMMA, hash64, mix64
from stages.text.chinese_variants import to_simplified
from stages.text.words.utf8_kernels import (
    as_array,
    ascii_features,
    token_bounds,
    utf8,
    word_bounds,
    words_to_split,
)
from stages.text.words.word_borders import UNSPACED
from stages.text.words.word_tokenizer import split_word

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
_PUNCTUATION = re.compile(r"^[\W_]+|[\W_]+$")
_ASCII_MARKS = "".join(c for c in map(chr, range(128)) if not c.isalnum())
_DIGITS = re.compile(r"\d+")
_UNSPACED_SCRIPT = re.compile(f"[{UNSPACED}]")
_CACHED_WORDS = 1 << 18
_CACHED_BYTES = 1 << 23


@dataclass(frozen=True, slots=True)
class WordArrays:
    """A text's words as arrays of shape (N,), in order."""

    hashes: Hashes
    """Hash of the word as written."""
    lengths: npt.NDArray[np.int64]
    """Length, characters."""
    symbol: npt.NDArray[np.bool_]
    """True if it has neither a letter nor a digit."""
    letter: npt.NDArray[np.bool_]
    """True if it has a letter."""
    folded: Hashes
    """Hash of the word in lower case without accents, outer punctuation and (in a table of equal
    digits) values of numbers, Chinese characters simplified; 0 for a word of punctuation alone."""
    unspaced: npt.NDArray[np.bool_]
    """True if it is a character of a script that is written without spaces."""

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def columns(self) -> _Columns:
        """All arrays in order."""
        return (self.hashes, self.lengths, self.symbol, self.letter, self.folded, self.unspaced)


@cache
def shared_word_table(*, equal_digits: bool = True) -> WordTable:
    """Return the table of this process, whose cached words serve all shards."""
    return WordTable(equal_digits=equal_digits)


class WordTable:
    """Splitter of texts into `WordArrays`, with a cache of words.

    The cache is bounded and never changes a result.

    Args:
        equal_digits: all numbers have the same `folded` hash.
    """

    def __init__(self, *, equal_digits: bool = True) -> None:
        self._equal_digits = equal_digits
        self._clear()

    def words(self, text: str) -> WordArrays:
        """Return the words of a text: runs between white space, and each character of a script that
        is written without spaces."""
        data = utf8(text)
        return self._at(data, *word_bounds(as_array(data)))

    def tokens(self, text: str) -> WordArrays:
        """Return the words of a text with punctuation marks as words of their own."""
        self._limit_cache()
        data = utf8(text)
        array = as_array(data)
        starts, stops = word_bounds(array)
        cut = words_to_split(array, starts, stops)
        sizes = chain.from_iterable(map(self._cuts.__getitem__, _slices(data, starts, stops, cut)))
        return self._at(data, *token_bounds(array, starts, stops, np.fromiter(sizes, np.int64)))

    def look_up(self, words: list[str]) -> WordArrays:
        """Return the features of each of these words."""
        written = [utf8(word) for word in words]
        edges = np.fromiter(accumulate(map(len, written), initial=0), np.int64, len(words) + 1)
        return self._at(b"".join(written), edges[:-1], edges[1:])

    def _at(self, data: bytes, starts: Places, stops: Places) -> WordArrays:
        """Return the words between these places in the UTF-8, shape (N,) each."""
        hashes, symbol, letter, folded, others = ascii_features(
            as_array(data), starts, stops, self._equal_digits
        )
        words = WordArrays(hashes, stops - starts, symbol, letter, folded, np.zeros_like(symbol))
        if len(others):
            self._limit_cache()
            written = _slices(data, starts, stops, others)
            rows = np.fromiter(map(self._rows.__getitem__, written), np.int64, len(others))
            self._add_words(self._rows.new)
            for column, known in zip(words.columns, self._columns, strict=True):
                column[others] = known[rows]
        return words

    def _limit_cache(self) -> None:
        words = max(len(self._rows), len(self._cuts))
        if words > _CACHED_WORDS or self._bytes + self._cuts.bytes > _CACHED_BYTES:
            self._clear()

    def _clear(self) -> None:
        self._rows = _WordRows()
        self._cuts = _TokenSizes()
        self._bytes = 0
        self._columns = _columns(1 << 12)

    def _add_words(self, words: list[bytes]) -> None:
        """Fill the rows of words that are new in the cache."""
        if not words:
            return
        stop = len(self._rows)
        start = stop - len(words)
        if stop > len(self._columns[0]):
            grown = _columns(2 * stop)
            for column, old in zip(grown, self._columns, strict=True):
                column[: len(old)] = old
            self._columns = grown
        self._bytes += sum(map(len, words))
        features = (_word_features(_text(word), self._equal_digits) for word in words)
        summaries = zip(*features, strict=True)
        for column, values in zip(self._columns, summaries, strict=True):
            column[start:stop] = values
        words.clear()


class _WordRows(dict[bytes, int]):
    """Rows of cached words; a new word gets the next row."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[bytes] = []

    def __missing__(self, word: bytes) -> int:
        self.new.append(word)
        row = self[word] = len(self)
        return row


class _TokenSizes(dict[bytes, tuple[int, ...]]):
    """Sizes in bytes of the tokens of words between white space."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __missing__(self, word: bytes) -> tuple[int, ...]:
        self.bytes += len(word)
        sizes = self[word] = tuple(len(utf8(token)) for token in split_word(_text(word)))
        return sizes


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _slices(data: bytes, starts: Places, stops: Places, which: Places) -> list[bytes]:
    bounds = zip(starts[which].tolist(), stops[which].tolist(), strict=True)
    return [data[start:stop] for start, stop in bounds]


_Columns = tuple[
    Hashes,
    npt.NDArray[np.int64],
    npt.NDArray[np.bool_],
    npt.NDArray[np.bool_],
    Hashes,
    npt.NDArray[np.bool_],
]


def _columns(size: int) -> _Columns:
    return (
        np.empty(size, np.uint64),
        np.empty(size, np.int64),
        np.empty(size, np.bool_),
        np.empty(size, np.bool_),
        np.empty(size, np.uint64),
        np.empty(size, np.bool_),
    )


def _word_features(word: str, equal_digits: bool) -> tuple[int, int, bool, bool, int, bool]:
    letter = any(map(str.isalpha, word))
    symbol = not letter and not any(map(str.isalnum, word))
    unspaced = _UNSPACED_SCRIPT.match(word) is not None
    return (
        hash64(word),
        len(word),
        symbol,
        letter,
        0 if symbol else hash64(fold_word(word, equal_digits=equal_digits)),
        unspaced,
    )


def fold_word(word: str, *, equal_digits: bool = True) -> str:
    """Fold a word for near-duplicate search: lower case, no accents, numbers equal unless their
    values count, Chinese characters simplified."""
    word = word.lower()
    if word.isascii():
        word = word.strip(_ASCII_MARKS)
        return _DIGITS.sub("0", word) if equal_digits and not word.isalpha() else word
    word = _PUNCTUATION.sub("", word)
    if equal_digits:
        word = _DIGITS.sub("0", word)
    split = unicodedata.normalize("NFD", word)
    return to_simplified("".join(c for c in split if unicodedata.category(c) != "Mn"))


def ngram_hashes(words: Hashes, n: int) -> Hashes:
    """Return a hash of every run of n words, shape (N - n + 1,): a mixed polynomial of the words'
    hashes. Empty for fewer than n words."""
    count = max(0, len(words) - n + 1)
    hashes = np.zeros(count, np.uint64)
    for k in range(n if count else 0):
        hashes *= np.uint64(GOLDEN_GAMMA)
        hashes += words[k : k + count]
    return mix64(hashes)
