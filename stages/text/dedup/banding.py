"""Bands and rows of a MinHash signature from the similarity that copies are to have.

Texts of Jaccard similarity s share a band with probability 1 - (1 - s^rows)^bands. What lies under
that curve below the threshold are false positives, what is missing above it false negatives; the
shape with the least weighted sum of both areas is chosen (as datasketch and text-dedup do).
"""

from __future__ import annotations

from functools import lru_cache

_STEPS = 200  # of each integral: the midpoint rule is then exact to 1e-5


def found_at(similarity: float, bands: int, rows: int) -> float:
    """How likely texts of that Jaccard similarity share a band."""
    return float(1 - (1 - similarity**rows) ** bands)


@lru_cache(64)
def best_shape(threshold: float, permutations: int, miss_weight: float) -> tuple[int, int]:
    """Bands and rows, at most `permutations` together, with the least weighted error."""
    shapes = (
        (bands, rows)
        for bands in range(1, permutations + 1)
        for rows in range(1, permutations // bands + 1)
    )
    return min(shapes, key=lambda shape: error(threshold, shape[0], shape[1], miss_weight))


def error(threshold: float, bands: int, rows: int, miss_weight: float) -> float:
    """The weighted area of false positives and false negatives."""
    false = _mean(0, threshold, bands, rows) * threshold
    missed = (1 - _mean(threshold, 1, bands, rows)) * (1 - threshold)
    return (1 - miss_weight) * false + miss_weight * missed


def _mean(low: float, high: float, bands: int, rows: int) -> float:
    step = (high - low) / _STEPS
    return sum(found_at(low + (at + 0.5) * step, bands, rows) for at in range(_STEPS)) / _STEPS
