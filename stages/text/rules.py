"""Rules that a document must pass: each is a measure of the text and a range it must lie in.

Gopher's quality and repetition rules (Rae et al. 2021, Table A1 and section A.1.1) in the variant
of datatrove (words 50 to 100,000, mean length of words that are not symbols), over words split at
white space. Two differences, both stated where they are computed: overlapping repeats of n-grams
are counted once, and word rules leave languages without spaces alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from stages.text.language import UNSPACED
from stages.text.words import Words, ngram_hashes

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_STOP_WORD = re.compile(r"\b(?:the|be|to|of|and|that|have|with)\b", re.I)
_PARAGRAPH = re.compile(r"\n{2,}")
TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)


@dataclass(frozen=True, slots=True)
class Limit:
    """The range of a measure that a document must lie in; an open end is infinite."""

    low: float = -np.inf
    high: float = np.inf

    def allows(self, value: float) -> bool:
        """Whether the value lies in the range."""
        return self.low <= value <= self.high


def length_measures(text: str) -> Iterator[tuple[str, float]]:
    """How long the text is."""
    yield "characters", float(len(text))


def quality_measures(text: str, words: Words, lang: str) -> Iterator[tuple[str, float]]:
    """Gopher's quality rules; `lang` decides which of them mean anything."""
    total = max(1, len(words))
    lines = text.split("\n")
    spoken = words.lengths[~words.symbol]
    yield "words", float(len(spoken))
    yield "symbols.hash", text.count("#") / total
    yield "symbols.ellipsis", (text.count("...") + text.count("…")) / total
    yield "lines.bullet", sum(_is_bullet(line) for line in lines) / len(lines)
    yield "lines.ellipsis", sum(_trails_off(line) for line in lines) / len(lines)
    yield "words.alphabetic", float(np.count_nonzero(words.letter)) / total
    if lang not in UNSPACED:
        yield "words.mean_length", float(spoken.mean()) if len(spoken) else 0.0
    if lang == "en":
        yield "words.stop", float(_distinct_stop_words(text))


def repetition_measures(text: str, words: Words) -> Iterator[tuple[str, float]]:
    """Gopher's repetition rules, each a fraction of the lines, paragraphs or characters."""
    yield from _duplicates("lines", text.split("\n"), len(text))
    yield from _duplicates("paragraphs", _PARAGRAPH.split(text), len(text))
    size = max(1, len(text))
    for n in TOP_NGRAMS:
        yield f"ngrams.top_{n}", _top_ngram(words, n) / size
    for n in DUPLICATE_NGRAMS:
        yield f"ngrams.duplicate_{n}", _duplicate_ngrams(words, n) / size


def first_failure(
    measures: Iterator[tuple[str, float]], limits: Mapping[str, Limit]
) -> tuple[str, float] | None:
    """The first measure outside its limit, with its value; measures after it are not taken."""
    for name, value in measures:
        if name in limits and not limits[name].allows(value):
            return name, value
    return None


def _is_bullet(line: str) -> bool:
    return line.lstrip().startswith(("•", "-"))


def _trails_off(line: str) -> bool:
    return line.rstrip().endswith(("...", "…"))


def _distinct_stop_words(text: str) -> int:
    found: set[str] = set()
    for match in _STOP_WORD.finditer(text):
        found.add(match[0].lower())
        if len(found) == len(STOP_WORDS):
            break
    return len(found)


def _duplicates(unit: str, pieces: list[str], characters: int) -> Iterator[tuple[str, float]]:
    """Second and later copies, as a fraction of the pieces and of the text's characters."""
    pieces = [stripped for piece in pieces if (stripped := piece.strip())]
    first = set(pieces)
    repeated = sum(map(len, pieces)) - sum(map(len, first))
    yield f"{unit}.duplicate", (len(pieces) - len(first)) / max(1, len(pieces))
    yield f"{unit}.duplicate_characters", repeated / max(1, characters)


def _top_ngram(words: Words, n: int) -> int:
    """Characters in all copies of the most frequent n-gram, joined by spaces; 0 if none repeats.

    Of equally frequent ones the first in the text counts.
    """
    hashes = ngram_hashes(words.hashes, n)
    if not len(hashes):
        return 0
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    most = int(counts.max())
    if most == 1:
        return 0
    at = int(first[counts == most].min())
    return most * (int(words.lengths[at : at + n].sum()) + n - 1)


def _duplicate_ngrams(words: Words, n: int) -> int:
    """Characters of the words that lie in an n-gram seen before; each word counts once."""
    hashes = ngram_hashes(words.hashes, n)
    _, first = np.unique(hashes, return_index=True)
    if len(first) == len(hashes):
        return 0
    repeat = np.ones(len(hashes), np.int64)
    repeat[first] = 0
    edges = np.zeros(len(words) + 1, np.int64)
    edges[: len(hashes)] += repeat
    edges[n : n + len(hashes)] -= repeat
    return int(words.lengths[np.cumsum(edges[:-1]) > 0].sum())
