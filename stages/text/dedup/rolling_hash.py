"""Rolling hashes of all substrings of one length, and anchors that equal substrings share.

The hash of a substring is a polynomial of its characters, computed from prefix sums: one pass over
arrays for any length. Anchors are chosen by winnowing (Schleimer, Wilkerson, Aiken 2003): among the
short substrings of each long one, the one with the least hash. Two equal long substrings, wherever
they are, share an anchor at the same offset.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from stages.data.hashing import mix64
from stages.text.words.word_table import Hashes

# 5 mod 8: its powers minus one have the fewest factors of 2.
_BASE = 0xD6E8FEB86659FD95
_INVERSE = pow(_BASE, -1, 1 << 64)

Places = npt.NDArray[np.int64]


class RollingHash:
    """Hashes of the substrings of one text."""

    def __init__(self, text: str) -> None:
        encoded = text.encode("utf-32-le", "surrogatepass")
        self._characters = np.frombuffer(encoded, "<u4").astype(np.uint64)
        values = mix64(self._characters + np.uint64(1)) * _powers(_BASE, len(text))
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values)])
        self._shift = _powers(_INVERSE, len(text))

    def hashes(self, width: int) -> Hashes:
        """Return the hash of the substring of `width` characters at each place, shape
        (characters - width + 1,)."""
        if len(self._characters) < width:
            return np.empty(0, np.uint64)
        sums = self._sums[width:] - self._sums[:-width]
        mixed: Hashes = mix64(sums * self._shift[: len(sums)])
        return mixed

    def end_characters(self, places: Places, width: int) -> npt.NDArray[np.uint32]:
        """Return the first and last characters as a number, a check besides the hash."""
        first, last = self._characters[places], self._characters[places + width - 1]
        return (first + (last << np.uint64(11)) & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def _powers(base: int, count: int) -> Hashes:
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers)


def winnow(hashes: Hashes, width: int) -> Places:
    """Return the places of the least hash of each `width` consecutive ones (all of equal ones)."""
    if len(hashes) < width:
        return np.empty(0, np.int64)
    least = sliding_extremum(hashes, width, np.minimum)
    margin = np.zeros(width - 1, np.uint64)
    # A hash is the least of some window if it equals the greatest minimum of its windows.
    greatest = sliding_extremum(np.concatenate([margin, least, margin]), width, np.maximum)
    return np.flatnonzero(greatest == hashes)


def sliding_extremum(
    values: Hashes, width: int, take: Callable[[Hashes, Hashes], Hashes]
) -> Hashes:
    """Return the minimum or maximum of each `width` consecutive values, in log2(width) passes."""
    span = 1
    while 2 * span <= width:
        values = take(values[:-span], values[span:])
        span *= 2
    rest = width - span
    return take(values[: len(values) - rest], values[rest:]) if rest else values
