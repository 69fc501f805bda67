"""Gopher's quality and repetition rules (Rae et al. 2021, section A.1.1 and Table A1), as in the
paper, in datatrove and in dolma.

The variants differ in what a word is (between white space, or with punctuation marks split off),
the average of the word lengths, the bullets, and how repeated n-grams are counted.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from stages.data.hashing import hash64
from stages.text.rules.document_view import DocumentView, Scores
from stages.text.rules.repeated_ngrams import repeated_characters
from stages.text.words.utf8_kernels import as_array, bullet_lines, utf8
from stages.text.words.word_table import WordArrays

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
_STOP_HASHES = [np.uint64(hash64(word)) for word in STOP_WORDS]
_TRAILING = re.compile(r"(?:\.\.\.|…)[^\S\n]*$", re.M)
MAX_TOP, MAX_N = 4, 10  # longest n-grams of the top and the duplicate rules
NOT_APPLICABLE = float("nan")


def quality(view: DocumentView) -> Scores:
    """Score the paper's quality rules over words between white space. Word lengths do not apply to
    a language without spaces, stop words to none but English."""
    words = view.words
    scores = _quality(view, words, words.lengths[~words.symbol])
    scores["stop_words"] = (
        NOT_APPLICABLE if view.lang != "en" else _count_stop_words(words, folded=True)
    )
    if not view.is_spaced:
        scores["word_length"] = NOT_APPLICABLE
    return scores


def quality_datatrove(view: DocumentView) -> Scores:
    """Score datatrove's rules, over tokens; stop words are matched in lower case alone."""
    tokens = view.tokens
    scores = _quality(view, tokens, tokens.lengths[~tokens.symbol])
    scores["stop_words"] = _count_stop_words(tokens, folded=False)
    return scores


def quality_dolma(view: DocumentView) -> Scores:
    """Score dolma's rules: the median length of all words, and words that contain a symbol."""
    words = view.words
    total = max(1, len(words))
    lines = view.lines
    spelled = view.text.split()
    symbols = sum("#" in word or "…" in word for word in spelled)
    return {
        "words": float(len(words)),
        "word_length": float(np.median(words.lengths)) if len(words) else 0.0,
        "symbols": symbols / total,
        "bullet_lines": sum(line.startswith(("*", "-")) for line in lines) / len(lines),
        "ellipsis_lines": sum(line.endswith("…") for line in lines) / len(lines),
        "alphabetic_words": np.count_nonzero(words.letter) / total,
        "stop_words": float(sum(word in STOP_WORDS for word in spelled)),
    }


def _quality(view: DocumentView, words: WordArrays, lengths: npt.NDArray[np.int64]) -> Scores:
    total = max(1, len(words))
    text, lines = view.text, view.lines
    ellipses = text.count("...") + text.count("…")
    trailing = len(_TRAILING.findall(text)) if ellipses else 0
    return {
        "words": float(len(lengths)),
        "word_length": float(lengths.mean()) if len(lengths) else 0.0,
        "hash_marks": text.count("#") / total,
        "ellipses": ellipses / total,
        "bullet_lines": bullet_lines(as_array(utf8(text))) / len(lines),
        "ellipsis_lines": trailing / len(lines),
        "alphabetic_words": np.count_nonzero(words.letter) / total,
    }


def repetition(view: DocumentView) -> Scores:
    """Score the paper's repetition rules over words between white space; a word in several repeated
    n-grams counts once."""
    size = max(1, len(view.text))
    lines = [stripped for line in view.lines if (stripped := line.strip())]
    paragraphs = [s for piece in view.text.split("\n\n") if (s := piece.strip())]
    scores = _duplicate_scores(lines, paragraphs, size)
    return scores | _repetition_scores(view.words, size, unique_count=0, skip_overlaps=False)


def repetition_datatrove(view: DocumentView) -> Scores:
    """Score datatrove's rules, over tokens: the most frequent n-gram counts even if it occurs once,
    and the search continues after each copy."""
    size = max(1, len(view.text))
    scores = _duplicate_scores(
        _without_empty(view.lines), _split_paragraphs(view.text.strip()), size
    )
    return scores | _repetition_scores(view.tokens, size, unique_count=1, skip_overlaps=True)


def _count_stop_words(words: WordArrays, *, folded: bool) -> float:
    """Return how many of the stop words occur, as written or in any case."""
    found = words.folded if folded else words.hashes
    return float(sum(bool((found == word).any()) for word in _STOP_HASHES))


def _without_empty(lines: list[str]) -> list[str]:
    """Return the lines split at runs of line breaks: empty strings at the ends alone."""
    return [line for at, line in enumerate(lines) if line or at in (0, len(lines) - 1)]


def _split_paragraphs(text: str) -> list[str]:
    """Split at runs of two and more line breaks a text without any at its ends."""
    pieces = [piece.lstrip("\n") for piece in text.split("\n\n")]
    return [piece for piece in pieces if piece] or [""]


def _duplicate_scores(lines: list[str], paragraphs: list[str], size: int) -> Scores:
    """Return second and later copies, as a share of the pieces and of the text's characters."""
    scores: Scores = {}
    for unit, pieces in (("line", lines), ("paragraph", paragraphs)):
        first = set(pieces)
        repeated = 0
        if len(first) < len(pieces):
            repeated = sum(map(len, pieces)) - sum(map(len, first))
        scores[f"duplicate_{unit}s"] = (len(pieces) - len(first)) / max(1, len(pieces))
        scores[f"duplicate_{unit}_characters"] = repeated / size
    return scores


def _repetition_scores(
    words: WordArrays, size: int, *, unique_count: int, skip_overlaps: bool
) -> Scores:
    """Return the characters in repeated n-grams, as a share of the text's."""
    characters = repeated_characters(
        words.hashes, words.lengths, MAX_TOP, MAX_N, unique_count, skip_overlaps
    )
    return {
        f"top_{n}_gram" if n <= MAX_TOP else f"duplicate_{n}_grams": count / size
        for n, count in enumerate(characters.tolist(), start=2)
    }
