"""Quality filters of generated questions.

A filter sees the candidates of all answers at once, in a fixed order, and returns for each whether
to drop it. Filters run in sequence; the first one that drops a candidate is its outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import regex

from stages.speaker.question_generation import CandidateQuestion
from stages.text.words.word_borders import word_spans

_WORD = regex.compile(r"[\p{L}\p{M}\p{N}_]+")  # `\w` lacks the vowel signs of Indic and Thai
KEPT = "kept"
"""The outcome of candidates that no filter drops."""

QuestionFilter = Callable[[Sequence[CandidateQuestion]], list[bool]]
"""Remaining candidates -> whether to drop each."""


def apply_question_filters(
    filters: Sequence[tuple[str, QuestionFilter]], candidates: Sequence[CandidateQuestion]
) -> list[tuple[str, int]]:
    """Set the outcome of every candidate.

    Returns:
        The name of each filter and the number of candidates that it dropped, in order.
    """
    remaining, counts = list(candidates), []
    for name, drops in filters:
        dropped = drops(remaining)
        for candidate, drop in zip(remaining, dropped, strict=True):
            if drop:
                candidate.outcome = name
        remaining = [c for c, drop in zip(remaining, dropped, strict=True) if not drop]
        counts.append((name, sum(dropped)))
    for candidate in remaining:
        candidate.outcome = KEPT
    return counts


def normalize_question(text: str) -> str:
    """Return the lower-case words and numbers of a question; equal questions have equal results."""
    return " ".join(_WORD.findall(text.lower()))


def is_truncated(candidates: Sequence[CandidateQuestion]) -> list[bool]:
    """Return which questions reached the length limit."""
    return [not candidate.finished for candidate in candidates]


def length_out_of_range(min_words: int, max_words: int) -> QuestionFilter:
    """Return a filter of questions with fewer or more words; a character of a script without spaces
    is a word."""

    def drops(candidates: Sequence[CandidateQuestion]) -> list[bool]:
        return [not min_words <= len(word_spans(c.text)) <= max_words for c in candidates]

    return drops


def is_repetitive(max_repetition: float, n: int = 2) -> QuestionFilter:
    """Return a filter of questions in which a larger share of word n-grams repeats earlier ones."""

    def repetition(text: str) -> float:
        lower = text.lower()
        words = [lower[start:end] for start, end in word_spans(lower)]
        ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0

    return lambda candidates: [repetition(c.text) > max_repetition for c in candidates]


def is_known(texts: Iterable[str]) -> QuestionFilter:
    """Return a filter of questions that equal one of these texts after normalization."""
    known = {normalize_question(text) for text in texts}
    return lambda candidates: [normalize_question(c.text) in known for c in candidates]


def is_ambiguous(candidates: Sequence[CandidateQuestion]) -> list[bool]:
    """Return which questions were generated for several answers: they identify no single one."""
    targets: dict[str, set[str]] = {}
    for candidate in candidates:
        targets.setdefault(normalize_question(candidate.text), set()).add(candidate.target)
    return [len(targets[normalize_question(c.text)]) > 1 for c in candidates]


def low_log_prob(quantile: float) -> QuestionFilter:
    """Return a filter of questions below a quantile of the speaker's log-probability per token."""

    def drops(candidates: Sequence[CandidateQuestion]) -> list[bool]:
        ordered = sorted(c.log_prob for c in candidates)
        if not ordered:
            return []
        threshold = ordered[int(quantile * len(ordered))] if quantile < 1 else float("inf")
        return [c.log_prob < threshold for c in candidates]

    return drops


def fails_round_trip(min_gain: float) -> QuestionFilter:
    """Return a filter of questions whose round-trip gain is at most `min_gain`: the forward model
    does not predict the answer better from them."""
    return lambda candidates: [
        c.round_trip_gain is not None and c.round_trip_gain <= min_gain for c in candidates
    ]


def not_best_candidate(candidates: Sequence[CandidateQuestion]) -> list[bool]:
    """Return which questions are not the best of their answer: by round-trip gain, then
    log-probability."""
    best: dict[str, CandidateQuestion] = {}
    for candidate in candidates:
        other = best.get(candidate.target)
        if other is None or _score(candidate) > _score(other):
            best[candidate.target] = candidate
    return [best[c.target] is not c for c in candidates]


def exceeds_quota(quota: int) -> QuestionFilter:
    """Return a filter of all but the `quota` best questions."""

    def drops(candidates: Sequence[CandidateQuestion]) -> list[bool]:
        order = sorted(range(len(candidates)), key=lambda i: _score(candidates[i]), reverse=True)
        kept = set(order[:quota])
        return [i not in kept for i in range(len(candidates))]

    return drops


def _score(candidate: CandidateQuestion) -> tuple[float, float]:
    gain = candidate.round_trip_gain
    return (gain if gain is not None else 0.0, candidate.log_prob)
