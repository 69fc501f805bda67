"""Which generated questions are good enough to learn from: a chain of rules, each counted.

Rules see the candidates of all targets at once and in one fixed order, and say of each whether
they would drop it; the first rule that does is the verdict.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from stages.speaker.question_generation import CandidateQuestion

QuestionFilter = Callable[[Sequence[CandidateQuestion]], list[bool]]
"""Candidates that are still in -> whether to drop each."""


def apply_filters(
    rules: Sequence[tuple[str, QuestionFilter]], candidates: Sequence[CandidateQuestion]
) -> list[tuple[str, int]]:
    """Give every candidate its verdict.

    Returns:
        How many each rule dropped, in order.
    """
    left, counts = list(candidates), []
    for name, rule in rules:
        dropped = rule(left)
        for candidate, drop in zip(left, dropped, strict=True):
            if drop:
                candidate.verdict = name
        left = [c for c, drop in zip(left, dropped, strict=True) if not drop]
        counts.append((name, sum(dropped)))
    for candidate in left:
        candidate.verdict = "kept"
    return counts


def normalize_question(text: str) -> str:
    """Lower case, words and numbers only: what makes two questions the same."""
    return " ".join(re.findall(r"\w+", text.lower()))


def truncated(candidates: Sequence[CandidateQuestion]) -> list[bool]:
    """Cut off at the limit."""
    return [not candidate.finished for candidate in candidates]


def length_out_of_range(shortest: int, longest: int) -> QuestionFilter:
    """Words outside of a range."""

    def rule(candidates: Sequence[CandidateQuestion]) -> list[bool]:
        return [not shortest <= len(c.text.split()) <= longest for c in candidates]

    return rule


def repetitive(share: float, size: int = 2) -> QuestionFilter:
    """More than a share of the word pairs are repeats of earlier ones."""

    def repeats(text: str) -> float:
        words = text.lower().split()
        grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0

    return lambda candidates: [repeats(c.text) > share for c in candidates]


def matches_known(texts: Iterable[str]) -> QuestionFilter:
    """The same question is among some texts (those of real or of held-out conversations)."""
    seen = {normalize_question(text) for text in texts}
    return lambda candidates: [normalize_question(c.text) in seen for c in candidates]


def ambiguous(candidates: Sequence[CandidateQuestion]) -> list[bool]:
    """The same question was asked for several targets: it tells none of them."""
    owners: dict[str, set[str]] = {}
    for candidate in candidates:
        owners.setdefault(normalize_question(candidate.text), set()).add(candidate.target)
    return [len(owners[normalize_question(c.text)]) > 1 for c in candidates]


def low_log_prob(quantile: float) -> QuestionFilter:
    """In the lowest part by the speaker's own log-probability a token."""

    def rule(candidates: Sequence[CandidateQuestion]) -> list[bool]:
        ordered = sorted(c.log_prob for c in candidates)
        if not ordered:
            return []
        threshold = ordered[int(quantile * len(ordered))] if quantile < 1 else float("inf")
        return [c.log_prob < threshold for c in candidates]

    return rule


def fails_round_trip(margin: float) -> QuestionFilter:
    """The forward model is not helped by the question: the round trip fails."""
    return lambda candidates: [c.gain is not None and c.gain <= margin for c in candidates]


def not_best_candidate(candidates: Sequence[CandidateQuestion]) -> list[bool]:
    """A better one is there for the same target: by round trip, else by log-probability."""
    best: dict[str, CandidateQuestion] = {}
    for candidate in candidates:
        rival = best.get(candidate.target)
        if rival is None or _merit(candidate) > _merit(rival):
            best[candidate.target] = candidate
    return [best[c.target] is not c for c in candidates]


def exceeds_quota(most: int) -> QuestionFilter:
    """Over the number that the mixture takes; the most merited stay."""

    def rule(candidates: Sequence[CandidateQuestion]) -> list[bool]:
        order = sorted(range(len(candidates)), key=lambda i: _merit(candidates[i]), reverse=True)
        kept = set(order[:most])
        return [i not in kept for i in range(len(candidates))]

    return rule


def _merit(candidate: CandidateQuestion) -> tuple[float, float]:
    return (candidate.gain if candidate.gain is not None else 0.0, candidate.log_prob)
