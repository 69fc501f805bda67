"""Gopher's quality and repetition rules (Rae et al. 2021, section A.1.1 and Table A1), as the paper
has them and as datatrove and dolma decide.

Where variants differ: what a word is (between white space, or with punctuation marks apart), the
average of the word lengths, which bullets count, how copies of n-grams are counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.data.hashing import GOLDEN, hash64
from stages.text.rules.view import View
from stages.text.words import Words

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
_STOP_HASHES = [np.uint64(hash64(word)) for word in STOP_WORDS]
_BULLETS = ("•", "-")
_TRAILING = re.compile(r"(?:\.\.\.|…)[^\S\n]*$", re.M)
LONGEST_TOP, LONGEST = 4, 10  # words of an n-gram whose copies, whose repeats count
NOTHING = float("nan")
Places = npt.NDArray[np.int64]
Scores = dict[str, float]


def quality(view: View) -> Scores:
    """The paper's quality rules over words between white space. Word lengths say nothing of a
    language without spaces, stop words nothing of any but English."""
    words = view.words
    scores = _quality(view, words, words.lengths[~words.symbol])
    scores["stop_words"] = NOTHING if view.lang != "en" else _stop_words(words, folded=True)
    if not view.spaced:
        scores["word_length"] = NOTHING
    return scores


def quality_datatrove(view: View) -> Scores:
    """datatrove's, over tokens; its stop words are matched in lower case alone."""
    tokens = view.tokens
    scores = _quality(view, tokens, tokens.lengths[~tokens.symbol])
    scores["stop_words"] = _stop_words(tokens, folded=False)
    return scores


def quality_dolma(view: View) -> Scores:
    """dolma's: the median length of all words, and words with a symbol in them for symbols."""
    words = view.words
    total = max(1, len(words))
    lines = view.lines
    written = view.text.split()
    symbols = sum("#" in word or "…" in word for word in written)
    return {
        "words": float(len(words)),
        "word_length": float(np.median(words.lengths)) if len(words) else 0.0,
        "symbols": symbols / total,
        "bullet_lines": sum(line.startswith(("*", "-")) for line in lines) / len(lines),
        "ellipsis_lines": sum(line.endswith("…") for line in lines) / len(lines),
        "alphabetic_words": np.count_nonzero(words.letter) / total,
        "stop_words": float(sum(word in STOP_WORDS for word in written)),
    }


def _quality(view: View, words: Words, spoken: npt.NDArray[np.int64]) -> Scores:
    total = max(1, len(words))
    text, lines = view.text, view.lines
    ellipses = text.count("...") + text.count("…")
    trailing = len(_TRAILING.findall(text)) if ellipses else 0
    return {
        "words": float(len(spoken)),
        "word_length": float(spoken.mean()) if len(spoken) else 0.0,
        "hash_marks": text.count("#") / total,
        "ellipses": ellipses / total,
        "bullet_lines": sum(line.lstrip()[:1] in _BULLETS for line in lines) / len(lines),
        "ellipsis_lines": trailing / len(lines),
        "alphabetic_words": np.count_nonzero(words.letter) / total,
    }


def repetition(view: View) -> Scores:
    """The paper's repetition rules over words between white space; a word that lies in several
    repeated n-grams counts once."""
    size = max(1, len(view.text))
    lines = [stripped for line in view.lines if (stripped := line.strip())]
    paragraphs = [s for piece in view.text.split("\n\n") if (s := piece.strip())]
    scores = _duplicates(lines, paragraphs, size)
    words = view.words
    for n, found in repeats(words, LONGEST):
        if n <= LONGEST_TOP:
            scores[f"top_{n}_gram"] = _top(found, words, n, single=0) / size
        else:
            scores[f"duplicate_{n}_grams"] = _covered(found, words, n) / size
    return scores


def repetition_datatrove(view: View) -> Scores:
    """datatrove's, over tokens: the most frequent n-gram counts even if it occurs once, and after
    a copy the search for the next goes on behind it."""
    size = max(1, len(view.text))
    scores = _duplicates(_runs(view.lines), _paragraphs(view.text.strip()), size)
    tokens = view.tokens
    ends = np.concatenate(([0], np.cumsum(tokens.lengths)))
    for n, found in repeats(tokens, LONGEST):
        if n <= LONGEST_TOP:
            scores[f"top_{n}_gram"] = _top(found, tokens, n, single=1) / size
        else:
            scores[f"duplicate_{n}_grams"] = _leapt(found, ends, n) / size
    return scores


def _stop_words(words: Words, *, folded: bool) -> float:
    """How many of the stop words occur, as they stand or in any case."""
    found = words.folded if folded else words.hashes
    return float(sum(bool((found == word).any()) for word in _STOP_HASHES))


def _runs(lines: list[str]) -> list[str]:
    """As a split at runs of line breaks: empty strings at the ends alone."""
    return [line for at, line in enumerate(lines) if line or at in (0, len(lines) - 1)]


def _paragraphs(text: str) -> list[str]:
    """As a split at runs of two and more line breaks, of a text with none at its ends."""
    pieces = [piece.lstrip("\n") for piece in text.split("\n\n")]
    return [piece for piece in pieces if piece] or [""]


def _duplicates(lines: list[str], paragraphs: list[str], size: int) -> Scores:
    """Second and later copies, as a share of the pieces and of the text's characters."""
    scores: Scores = {}
    for unit, pieces in (("line", lines), ("paragraph", paragraphs)):
        first = set(pieces)
        repeated = 0
        if len(first) < len(pieces):
            repeated = sum(map(len, pieces)) - sum(map(len, first))
        scores[f"duplicate_{unit}s"] = (len(pieces) - len(first)) / max(1, len(pieces))
        scores[f"duplicate_{unit}_characters"] = repeated / size
    return scores


@dataclass(frozen=True, slots=True)
class Repeats:
    """The n-grams of a text that occur more than once, shape (R,) each, in the text's order."""

    at: npt.NDArray[np.int64]
    """Where it begins, in words."""
    first: npt.NDArray[np.int64]
    """Where the first equal one begins: the same for equal n-grams, and for no others."""


def repeats(words: Words, longest: int) -> Iterator[tuple[int, Repeats]]:
    """The repeated 2- to `longest`-grams. Where an n-gram is repeated, the shorter one that it
    begins with is too, so each length looks only where the last one found something."""
    hashes = gram = words.hashes
    at = np.arange(len(words))
    for n in range(2, longest + 1):
        inside = int(np.searchsorted(at, len(words) - n, side="right"))
        at = at[:inside]
        gram = gram[:inside] * np.uint64(GOLDEN) + hashes[at + (n - 1)]
        again, first = _equal(gram)
        at, gram, first = at[again], gram[again], at[first]
        yield n, Repeats(at, first)


def _equal(values: npt.NDArray[np.uint64]) -> tuple[Places, Places]:
    """Where values stand that occur more than once, in order, and where the first equal one
    does."""
    order = np.argsort(values)
    ordered = values[order]
    alike = np.zeros(len(values) + 1, np.bool_)  # with the one before; none before the first
    np.equal(ordered[1:], ordered[:-1], out=alike[1:-1])
    edges = np.flatnonzero(alike[1:] != alike[:-1])  # where each group begins, and its last
    if not len(edges):
        return edges, edges
    grouped = order[alike[1:] | alike[:-1]]
    sizes = edges[1::2] - edges[::2] + 1
    leaders = np.minimum.reduceat(grouped, np.cumsum(sizes) - sizes)
    first = np.empty(len(values), np.int64)
    first[grouped] = np.repeat(leaders, sizes)
    again = np.zeros(len(values), np.bool_)
    again[grouped] = True
    return np.flatnonzero(again), first[again]


def _top(found: Repeats, words: Words, n: int, *, single: int) -> int:
    """Characters in all copies of the most frequent n-gram, joined by spaces; of equally frequent
    ones the first counts. One that occurs once counts `single` times."""
    if len(words) < n:
        return 0
    first, copies = 0, single
    if len(found.at):
        counts = np.bincount(found.first)
        first = int(np.argmax(counts))
        copies = int(counts[first])
    return copies * (int(words.lengths[first : first + n].sum()) + n - 1)


def _covered(found: Repeats, words: Words, n: int) -> int:
    """Characters of the words that lie in an n-gram seen before; each word counts once."""
    copies = found.at[found.at != found.first]
    edges = np.zeros(len(words) + 1, np.int64)
    edges[copies] += 1
    edges[copies + n] -= 1
    return int(words.lengths[np.cumsum(edges[:-1]) > 0].sum()) if len(copies) else 0


def _leapt(found: Repeats, ends: npt.NDArray[np.int64], n: int) -> int:
    """Characters of the n-grams met again when every copy is leapt over; `ends` are the words'
    ends in characters, after a 0.

    Only second and later occurrences are walked through. One is a copy if the first was not leapt
    over, or if another was met before.
    """
    later = found.at != found.first
    places = found.at[later]
    if not len(places):
        return 0
    behind = np.searchsorted(places, places + n).tolist()
    first, at = found.first[later].tolist(), places.tolist()
    leapt = bytearray(len(ends))
    inside = b"\1" * (n - 1)
    seen: set[int] = set()
    copies: list[int] = []
    row = 0
    while row < len(at):
        place, origin = at[row], first[row]
        if leapt[origin] and origin not in seen:
            seen.add(origin)
            row += 1
        else:
            copies.append(place)
            leapt[place + 1 : place + n] = inside
            row = behind[row]
    starts = np.array(copies)
    return int((ends[starts + n] - ends[starts]).sum())
