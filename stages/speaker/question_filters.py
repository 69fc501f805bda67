"""Which generated questions are good enough to learn from: a chain of rules, each counted.

Rules see the candidates of all targets at once and in one fixed order, and say of each whether
they would drop it; the first rule that does is the verdict.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from stages.speaker.question_generation import Candidate

Rule = Callable[[Sequence[Candidate]], list[bool]]
"""Candidates that are still in -> whether to drop each."""


def apply(
    rules: Sequence[tuple[str, Rule]], candidates: Sequence[Candidate]
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


def normal(text: str) -> str:
    """Lower case, words and numbers only: what makes two questions the same."""
    return " ".join(re.findall(r"\w+", text.lower()))


def unfinished(candidates: Sequence[Candidate]) -> list[bool]:
    """Cut off at the limit."""
    return [not candidate.finished for candidate in candidates]


def length(shortest: int, longest: int) -> Rule:
    """Words outside of a range."""

    def rule(candidates: Sequence[Candidate]) -> list[bool]:
        return [not shortest <= len(c.text.split()) <= longest for c in candidates]

    return rule


def repetition(share: float, size: int = 2) -> Rule:
    """More than a share of the word pairs are repeats of earlier ones."""

    def repeats(text: str) -> float:
        words = text.lower().split()
        grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0

    return lambda candidates: [repeats(c.text) > share for c in candidates]


def known(texts: Iterable[str]) -> Rule:
    """The same question is among some texts (those of real or of held-out conversations)."""
    seen = {normal(text) for text in texts}
    return lambda candidates: [normal(c.text) in seen for c in candidates]


def ambiguous(candidates: Sequence[Candidate]) -> list[bool]:
    """The same question was asked for several targets: it tells none of them."""
    owners: dict[str, set[str]] = {}
    for candidate in candidates:
        owners.setdefault(normal(candidate.text), set()).add(candidate.target)
    return [len(owners[normal(c.text)]) > 1 for c in candidates]


def unlikely(quantile: float) -> Rule:
    """In the lowest part by the speaker's own log-probability a token."""

    def rule(candidates: Sequence[Candidate]) -> list[bool]:
        ordered = sorted(c.log_prob for c in candidates)
        if not ordered:
            return []
        threshold = ordered[int(quantile * len(ordered))] if quantile < 1 else float("inf")
        return [c.log_prob < threshold for c in candidates]

    return rule


def one_way(margin: float) -> Rule:
    """The forward model is not helped by the question: the round trip fails."""
    return lambda candidates: [c.gain is not None and c.gain <= margin for c in candidates]


def not_best(candidates: Sequence[Candidate]) -> list[bool]:
    """A better one is there for the same target: by round trip, else by log-probability."""
    best: dict[str, Candidate] = {}
    for candidate in candidates:
        rival = best.get(candidate.target)
        if rival is None or _merit(candidate) > _merit(rival):
            best[candidate.target] = candidate
    return [best[c.target] is not c for c in candidates]


def beyond(most: int) -> Rule:
    """Over the number that the mixture takes; the most merited stay."""

    def rule(candidates: Sequence[Candidate]) -> list[bool]:
        order = sorted(range(len(candidates)), key=lambda i: _merit(candidates[i]), reverse=True)
        kept = set(order[:most])
        return [i not in kept for i in range(len(candidates))]

    return rule


def _merit(candidate: Candidate) -> tuple[float, float]:
    return (candidate.gain if candidate.gain is not None else 0.0, candidate.log_prob)
