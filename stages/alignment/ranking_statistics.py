"""Statistics of scores against rankings, over pooled pairs: each pair of a held-out response with a
worse one counts the same, whichever prompt it belongs to.

Pairs of one prompt depend on each other, so intervals are bootstrapped by prompt: prompts are drawn
with replacement, each with all its pairs, and the interval holds the middle 95 % of the results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

FEWEST_PAIRS = 30
"""Number of pairs below which there is no interval."""
_DRAWS = 1000
_CHUNK = 4_000_000  # drawn prompts in memory at a time
_BINS = 10  # of predicted probabilities, in the expected calibration error
_MARGIN_GROUPS = 4

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class RankedPairs:
    """Pairs of responses to one prompt with different ranks; N entries each."""

    prompts: Integers
    """Number of the prompt."""
    ranks: Integers
    """Ranks of the better and the worse response, of shape (N, 2)."""
    differences: Floats
    """Score of the better response less that of the worse one."""
    longer: Integers
    """Length of the better response less that of the worse one, in tokens."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def correct(self) -> Floats:
        """1 where the better response has the higher score, one half where scores are equal."""
        return (np.sign(self.differences) + 1) / 2

    @property
    def longer_wins(self) -> Floats:
        """1 where the better response is the longer one, one half where lengths are equal."""
        return (np.sign(self.longer) + 1) / 2

    @property
    def longer_preferred(self) -> Floats:
        """1 where the longer response has the higher score, one half where scores or lengths are
        equal."""
        return (np.sign(self.differences) * np.sign(self.longer) + 1) / 2


@dataclass(frozen=True)
class Estimate:
    """A mean over pairs with its 95 % interval."""

    mean: float
    pairs: int
    interval: tuple[float, float] | None
    """Lower and upper bound; None if there are too few pairs."""

    @property
    def bounds(self) -> str:
        """The interval as text."""
        return "too few" if self.interval is None else "{:.3f} to {:.3f}".format(*self.interval)


def pair_responses(
    rankings: Sequence[tuple[Sequence[int], Sequence[float], Sequence[int]]],
) -> RankedPairs:
    """Return the pairs of rankings, each the ranks, scores and lengths of the responses to one
    prompt."""
    rows = [row for number, ranking in enumerate(rankings) for row in _pairs(number, *ranking)]
    whole = np.array([row[:4] for row in rows], np.int64).reshape(-1, 4)
    differences = np.array([row[4] for row in rows], np.float64)
    return RankedPairs(whole[:, 0], whole[:, 1:3], differences, whole[:, 3])


def _pairs(
    number: int, ranks: Sequence[int], scores: Sequence[float], lengths: Sequence[int]
) -> Iterator[tuple[int, int, int, int, float]]:
    for i, better in enumerate(ranks):
        for j, worse in enumerate(ranks):
            if better < worse:
                yield number, better, worse, lengths[i] - lengths[j], scores[i] - scores[j]


def estimate_mean(values: Floats, prompts: Integers, seed: int = 0) -> Estimate:
    """Return the mean of values over pairs, with a bootstrap interval by prompt."""
    if not len(values):
        return Estimate(float("nan"), 0, None)
    mean = float(values.mean())
    _, at = np.unique(prompts, return_inverse=True)
    pairs_P = np.bincount(at)
    if len(values) < FEWEST_PAIRS or len(pairs_P) < 2:
        return Estimate(mean, len(values), None)
    sums_P = np.bincount(at, weights=values)
    count, generator = len(pairs_P), np.random.default_rng(seed)
    means = []
    for start in range(0, _DRAWS, rows := max(1, _CHUNK // count)):
        drawn = generator.integers(count, size=(min(rows, _DRAWS - start), count))
        means.append(sums_P[drawn].sum(1) / pairs_P[drawn].sum(1))
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return Estimate(mean, len(values), (float(low), float(high)))


def estimate_by_ranks(pairs: RankedPairs) -> dict[tuple[int, int], Estimate]:
    """Return the accuracy of each pair of ranks, (better, worse)."""
    found = np.unique(pairs.ranks, axis=0).tolist()
    groups = {(better, worse): (pairs.ranks == (better, worse)).all(1) for better, worse in found}
    return {key: _estimate_accuracy(pairs, group) for key, group in groups.items()}


def estimate_by_margin(pairs: RankedPairs) -> dict[str, Estimate]:
    """Return the accuracy of equally many pairs each, from close scores to distant ones."""
    margins = np.abs(pairs.differences)
    inner = np.quantile(margins, np.linspace(0, 1, _MARGIN_GROUPS + 1)[1:-1])
    group = np.searchsorted(inner, margins, side="left")
    edges = [0.0, *inner.tolist(), float(margins.max())]
    groups: dict[str, Mask] = {}
    for at, (low, high) in enumerate(pairwise(edges)):
        label = f"{low:.3g} to {high:.3g}"  # of equal margins, the same for several groups
        groups[label] = groups.get(label, False) | (group == at)
    return _estimate_groups(pairs, groups)


def estimate_by_length(pairs: RankedPairs) -> dict[str, Estimate]:
    """Return the accuracy by how much longer the better response is, split at the median of the
    differences of length."""
    length = pairs.longer
    middle = int(np.median(np.abs(length[length != 0]))) if length.any() else 0
    groups = {
        f"shorter by more than {middle}": length < -middle,
        f"shorter by 1 to {middle}": (length < 0) & (length >= -middle),
        "as long": length == 0,
        f"longer by 1 to {middle}": (length > 0) & (length <= middle),
        f"longer by more than {middle}": length > middle,
    }
    return _estimate_groups(pairs, groups)


def _estimate_groups(pairs: RankedPairs, groups: Mapping[str, Mask]) -> dict[str, Estimate]:
    return {key: _estimate_accuracy(pairs, at) for key, at in groups.items() if at.any()}


def _estimate_accuracy(pairs: RankedPairs, group: Mask) -> Estimate:
    return estimate_mean(pairs.correct[group], pairs.prompts[group])


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs for which the model predicts about the same probability of being right."""

    predicted: float
    observed: float
    pairs: int


def reliability(pairs: RankedPairs) -> list[ReliabilityBin]:
    """Return the mean predicted probability, sigmoid of the margin of scores, and the accuracy in
    bins of equal width between one half and 1; empty bins are left out."""
    predicted = 1 / (1 + np.exp(-np.abs(pairs.differences)))
    at = np.minimum(((predicted - 0.5) * 2 * _BINS).astype(np.int64), _BINS - 1)
    correct = pairs.correct
    return [
        ReliabilityBin(float(predicted[at == b].mean()), float(correct[at == b].mean()), int(n))
        for b, n in enumerate(np.bincount(at, minlength=_BINS))
        if n
    ]


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Return the expected calibration error: the mean distance over pairs between prediction and
    accuracy of their bin."""
    total = sum(found.pairs for found in bins)
    return sum(found.pairs * abs(found.predicted - found.observed) for found in bins) / total


def length_correlations(
    scores: Sequence[Sequence[float]], lengths: Sequence[Sequence[int]]
) -> tuple[float | None, float | None]:
    """Return Pearson's and Spearman's correlation of score and length, each less its mean over the
    responses to the same prompt; None if one does not vary."""
    x, y = (
        np.concatenate([np.subtract(row, np.mean(row)) for row in c]) for c in (scores, lengths)
    )
    return _pearson(x, y), _pearson(_average_ranks(x), _average_ranks(y))


def _pearson(x: Floats, y: Floats) -> float | None:
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else None


def _average_ranks(values: Floats) -> Floats:
    _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: Floats = (np.cumsum(counts) - (counts - 1) / 2)[at]
    return found
