"""Words and punctuation marks as separate tokens, split about as by spaCy's English tokenizer.

Marks are split off both ends of a word between white space, one by one; the rest is split inside
only where letters meet at a mark, and not at all if it resembles an address. spaCy itself would
take most of the time of cleaning (see docs/benchmarks.md).
"""

from __future__ import annotations

import re

_MARKS = r"…,:;!?¿¡()\[\]{}<>_#*&'\"”“`‘´’‚„»«。？！，、；："
_SIGNS = "©®°\u2190-\u2bff\U0001f000-\U0001faff"
_BEFORE = re.compile(rf"''$|[§%=—–$£€¥{_MARKS}{_SIGNS}]|\.\.+|\+(?![0-9])")
_BEHIND = re.compile(
    rf"(?:''|\)[:;]|[:;][\])(]|[—–{_MARKS}{_SIGNS}]|\.\.+|['’][sS]|n['’]t|['’](?:ll|re|ve|d|m)"
    r"|(?<=[0-9])(?:\+|[$£€¥%]|km|m|cm|mm|kg|g|mg|s|ms|h|kb|mb|gb|tb|KB|MB|GB|TB)"
    rf"|(?<=[0-9a-z²%+\-{_MARKS}])\.|(?<=[A-Z][A-Z])\.)$"
)
_INSIDE = re.compile(
    r"\.\.+|…|(?<=[0-9])[+\-*^](?=[0-9-])|(?<=[a-z'\"’”])\.(?=[A-Z'\"‘“])"
    r"|(?<=[^\W\d_]),(?=[^\W\d_])|(?<=[^\W_])[:<>=/](?=[^\W\d_])"
    r"|(?<=[^\W_])(?:-{1,3}|—|–|~)(?=[^\W\d_])"
)
_JOINT = re.compile("[.…+*^,:<>=/~—–-]")  # every match of `_INSIDE` begins with one of these
_ADDRESS = re.compile(
    r"(?:[A-Za-z][\w+.-]*://)?(?:\S+@)?[^\W_](?:[\w-]*[^\W_])?(?:\.[^\W_](?:[\w-]*[^\W_])?)*"
    r"\.[a-z]{2,}(?::\d+)?(?:[/?#]\S*)?$"
)
_ABBREVIATIONS = """e.g. i.e. a.m. p.m. vs. v.s. Mr. Mrs. Ms. Dr. Prof. St. Inc. Co. Corp. Ltd. Jr.
Sr. Gen. Gov. Rep. Sen. Mt. No. Jan. Feb. Mar. Apr. Jun. Jul. Aug. Sep. Sept. Oct. Nov. Dec."""
_WHOLE = frozenset([*_ABBREVIATIONS.split(), ":)", ":(", ";)", ":-)", "C++"])

_WINDOW = 8  # characters: no suffix and no word of `_WHOLE` is longer
_ALONE = frozenset('…,!?¿¡{}<>_#*&"”“`‘´‚„»«。？！，、；：')
"""Marks that are tokens of their own after a word, whatever precedes them."""


def split_word(word: str) -> list[str]:
    """Split a word between white space into tokens, in order."""
    if word.isalpha():
        return [word]
    front: list[str] = []
    back: list[str] = []
    start, end = 0, len(word)
    while start < end and not _is_whole(word, start, end):
        before = start, end
        if not word[start].isalnum() and (found := _BEFORE.match(word, start, end)):
            front.append(found[0])
            start = found.end()
        if start < end and not _is_whole(word, start, end):
            if word[end - 1] in _ALONE:
                end -= 1
                back.append(word[end])
            elif found := _BEHIND.search(word, max(start, end - _WINDOW), end):
                back.append(found[0])
                end = found.start()
        if before == (start, end):
            break
    rest = word[start:end]
    middle = (
        [rest] if rest.isalnum() or rest in _WHOLE or _is_address(rest) else _split_inside(rest)
    )
    return [token for token in (*front, *middle, *reversed(back)) if token]


def _is_whole(word: str, start: int, end: int) -> bool:
    return end - start <= _WINDOW and word[start:end] in _WHOLE


def _is_address(word: str) -> bool:
    return "." in word and _ADDRESS.match(word) is not None


def _split_inside(word: str) -> list[str]:
    if not _JOINT.search(word):
        return [word]
    pieces, start = [], 0
    for found in _INSIDE.finditer(word):
        pieces += [word[start : found.start()], found[0]]
        start = found.end()
    return [*pieces, word[start:]]
