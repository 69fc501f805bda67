"""A text as rules read it: split once, hashed once, each part computed on first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import regex

from stages.text.language_id import UNSPACED_LANGUAGES
from stages.text.words.word_table import WordArrays, WordTable

Scores = dict[str, float]
"""Values of a rule set's measures, by name."""
_SENTENCE_END = regex.compile(r"\p{Sentence_Terminal}+[\p{P}\s]*")
_ends: dict[str, bool] = {}  # lines end with few different characters


def is_sentence_end(character: str) -> bool:
    """Return whether Unicode defines the character as sentence-terminal."""
    known = _ends.get(character)
    if known is None:
        known = _ends[character] = bool(regex.match(r"\p{Sentence_Terminal}", character))
    return known


def count_sentences(line: str) -> int:
    """Count the pieces of a line that end at an end mark followed by a space, and the remainder."""
    pieces = 0
    rest = 0
    for match in _SENTENCE_END.finditer(line):
        if match.end() == len(line) or line[match.start() : match.end()][-1].isspace():
            pieces += 1
            rest = match.end()
    return pieces + (rest < len(line))


@dataclass
class DocumentView:
    """A document and the parts that its rules share."""

    text: str
    lang: str
    word_table: WordTable
    meta: Mapping[str, Any] = field(default_factory=dict)
    sentences: Callable[[str], int] = count_sentences
    """Function that counts the sentences of a line."""
    split: Callable[[str], list[str]] | None = None
    """Function that splits a text into words and punctuation marks. Default: the word table's."""

    @property
    def is_spaced(self) -> bool:
        """True if the language puts spaces between words."""
        return self.lang not in UNSPACED_LANGUAGES

    @cached_property
    def lines(self) -> list[str]:
        """The lines, unchanged."""
        return self.text.split("\n")

    @cached_property
    def filled_lines(self) -> list[str]:
        """Lines that are not blank."""
        return [line for line in self.lines if line and not line.isspace()]

    @cached_property
    def words(self) -> WordArrays:
        """Words between white space, and each character of a script without spaces."""
        return self.word_table.words(self.text)

    @cached_property
    def tokens(self) -> WordArrays:
        """Words and punctuation marks, as linguistic tokenizers split them."""
        if self.split is not None:
            return self.word_table.look_up(self.split(self.text))
        return self.word_table.tokens(self.text)
