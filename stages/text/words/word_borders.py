r"""Borders of words for patterns that search text in any script.

`\b` and `\w` take every letter of Unicode for a part of the word, but Chinese, Japanese, Thai and
other scripts put no spaces between words, and Korean particles, Arabic and Hebrew prefixes are
written together with a foreign word. An address that touches such a letter would have no border.
"""

from __future__ import annotations

import re

LATIN_LETTERS = "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u1e00-\u1eff"
LATIN = f"{LATIN_LETTERS}0-9_"
"""Characters that continue a word of Latin letters or digits, for a class of a pattern."""
LATIN_START = f"(?<![{LATIN}])"
LATIN_END = f"(?![{LATIN}])"
"""Borders of a Latin word or a number: next to letters of any other script, it stands alone."""

UNSPACED_RANGES = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Ranges of characters in scripts that are written without spaces, first and last."""
UNSPACED = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED_RANGES)
"""The same characters, for a class of a pattern."""
_JOINED_RANGES = (
    *((0x0590, 0x08FF), (0xFB1D, 0xFDFF), (0xFE70, 0xFEFC)),  # Hebrew, Arabic, Syriac
    *((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),  # Hangul
    *((0x0F00, 0x0FFF), (0x3005, 0x3007), (0x3100, 0x312F), (0x31A0, 0x31BF), (0x31F0, 0x31FF)),
    *((0xFF66, 0xFFDC), (0x1B000, 0x1B16F)),  # half-width kana and Hangul, old kana
)
JOINED = "".join(f"{chr(first)}-{chr(last)}" for first, last in (*UNSPACED_RANGES, *_JOINED_RANGES))
"""Characters of scripts whose words touch other words, for a class of a pattern."""
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_IS_LATIN = re.compile(f"[{LATIN}]")
_IS_SPACED = re.compile(rf"[^\W{JOINED}]")
_SPACED_START = rf"(?<![^\W{JOINED}])"
_SPACED_END = rf"(?![^\W{JOINED}])"


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return first character and one past the last of each word: runs between white space, and each
    character of a script that is written without spaces (`WordTable.words` as places in the text).
    """
    return [match.span() for match in _WORD.finditer(text)]


def whole_word(word: str) -> str:
    """Return the pattern of a word or phrase that stands alone where its script separates words.

    An end that is a mark, or a letter of a script whose words touch others, needs no border.
    """
    return f"{_start(word[0])}{re.escape(word)}{_end(word[-1])}"


def _start(character: str) -> str:
    if _IS_LATIN.match(character):
        return LATIN_START
    return _SPACED_START if _IS_SPACED.match(character) else ""


def _end(character: str) -> str:
    if _IS_LATIN.match(character):
        return LATIN_END
    return _SPACED_END if _IS_SPACED.match(character) else ""
