"""Hashes of every run of characters of a text, and anchors that equal runs have in common.

The hash of a run is a polynomial of its characters, read off running sums: one pass over arrays
for any width. Anchors are chosen by winnowing (Schleimer, Wilkerson, Aiken 2003): of the short
runs within each long one the least by hash, so that two equal long runs, wherever they lie, share
an anchor at the same place.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from stages.data.hashing import mix64
from stages.text.words.word_table import Hashes

# 5 mod 8: powers of it minus one are divisible by 2 as seldom as can be.
_BASE = 0xD6E8FEB86659FD95
_INVERSE = pow(_BASE, -1, 1 << 64)

Places = npt.NDArray[np.int64]


class RollingHash:
    """The runs of characters of one text."""

    def __init__(self, text: str) -> None:
        encoded = text.encode("utf-32-le", "surrogatepass")
        self._characters = np.frombuffer(encoded, "<u4").astype(np.uint64)
        values = mix64(self._characters + np.uint64(1)) * _powers(_BASE, len(text))
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values)])
        self._shift = _powers(_INVERSE, len(text))

    def hashes(self, width: int) -> Hashes:
        """Of the run of `width` characters from each place, shape (characters - width + 1,)."""
        if len(self._characters) < width:
            return np.empty(0, np.uint64)
        sums = self._sums[width:] - self._sums[:-width]
        mixed: Hashes = mix64(sums * self._shift[: len(sums)])
        return mixed

    def ends(self, places: Places, width: int) -> npt.NDArray[np.uint32]:
        """What the first and last character of these runs are: a check beside the hash."""
        first, last = self._characters[places], self._characters[places + width - 1]
        return (first + (last << np.uint64(11)) & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def _powers(base: int, count: int) -> Hashes:
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers)


def winnow(hashes: Hashes, width: int) -> Places:
    """Places of the least hash of each `width` consecutive ones (of all that are as small)."""
    if len(hashes) < width:
        return np.empty(0, np.int64)
    least = sliding(hashes, width, np.minimum)
    margin = np.zeros(width - 1, np.uint64)
    # A hash is the least of some window if it is the greatest minimum of those that it lies in.
    greatest = sliding(np.concatenate([margin, least, margin]), width, np.maximum)
    return np.flatnonzero(greatest == hashes)


def sliding(values: Hashes, width: int, take: Callable[[Hashes, Hashes], Hashes]) -> Hashes:
    """The minimum or maximum of each `width` consecutive values, in log2(width) passes."""
    span = 1
    while 2 * span <= width:
        values = take(values[:-span], values[span:])
        span *= 2
    rest = width - span
    return take(values[: len(values) - rest], values[rest:]) if rest else values
