"""A text as rules see it: split once, hashed once, each part made when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import regex

from stages.text.language_id import UNSPACED_LANGUAGES
from stages.text.words.word_table import WordArrays, WordTable

_SENTENCE_END = regex.compile(r"\p{Sentence_Terminal}+[\p{P}\s]*")
_ends: dict[str, bool] = {}  # of the few characters that lines end with


def is_sentence_end(character: str) -> bool:
    """Whether Unicode calls it a sentence's end mark."""
    known = _ends.get(character)
    if known is None:
        known = _ends[character] = bool(regex.match(r"\p{Sentence_Terminal}", character))
    return known


def count_sentences(line: str) -> int:
    """Pieces of a line that end at an end mark with a space behind it, and what is left."""
    pieces = 0
    rest = 0
    for match in _SENTENCE_END.finditer(line):
        if match.end() == len(line) or line[match.start() : match.end()][-1].isspace():
            pieces += 1
            rest = match.end()
    return pieces + (rest < len(line))


@dataclass
class DocumentView:
    """A document and what its rules share."""

    text: str
    lang: str
    shared_word_table: WordTable
    meta: Mapping[str, Any] = field(default_factory=dict)
    sentences: Callable[[str], int] = count_sentences
    """Counts the sentences of a line."""
    split: Callable[[str], list[str]] | None = None
    """Splits a text into words and punctuation marks; the lexicon's own where it is not given."""

    @property
    def spaced(self) -> bool:
        """Whether the language puts spaces between words."""
        return self.lang not in UNSPACED_LANGUAGES

    @cached_property
    def lines(self) -> list[str]:
        """Between line breaks, as they are."""
        return self.text.split("\n")

    @cached_property
    def filled_lines(self) -> list[str]:
        """Lines with more than white space in them."""
        return [line for line in self.lines if line and not line.isspace()]

    @cached_property
    def words(self) -> WordArrays:
        """Runs between white space, and each character of a script without spaces."""
        return self.shared_word_table.words(self.text)

    @cached_property
    def tokens(self) -> WordArrays:
        """Words and punctuation marks apart, as tokenizers of linguists split them."""
        if self.split is not None:
            return self.shared_word_table.look_up(self.split(self.text))
        return self.shared_word_table.tokens(self.text)
