"""Images that look alike: a 64-bit difference hash, sixteen mean colours, and the search for both.

The hash has one bit for each two neighbours of a 9 x 8 reduction in grey: whether brightness falls
from left to right (dHash; Krawetz 2013), by more than the noise that recompression leaves in what
is flat. It survives scaling and changes of brightness, and is blind to colour and to flat images:
the colours of a 4 x 4 reduction tell a blue sky from a blank page.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image

HASH_BITS = 64
_NOISE = 2  # of 255: of recompressed drawings with flat parts 0 misses one in nine, 2 one in 70
COLORS = 4 * 4 * 3
"""Bytes that tell the colours of a look."""

Hashes = npt.NDArray[np.uint64]
Colors = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]


def look(image: Image.Image) -> tuple[int, bytes]:
    """The difference hash of an RGB image, and its `COLORS` bytes."""
    small = image.resize((36, 32), Image.Resampling.BOX)
    gray = np.asarray(small.resize((9, 8), Image.Resampling.BOX).convert("L"), np.int16)
    bits = np.packbits(gray[:, :-1] > gray[:, 1:] + _NOISE)
    colors = small.resize((4, 4), Image.Resampling.BOX).tobytes()
    return int.from_bytes(bits.tobytes(), "big"), colors


def lookalikes(
    hashes: Hashes, colors: Colors, distance: int, color_distance: float
) -> tuple[Rows, Rows]:
    """For each image the one that it is a copy of, in order: itself, or the first that stays of
    those whose hashes differ in at most `distance` bits and whose colours differ by at most
    `color_distance` on average.

    Only images that stay have copies, so that no chain of small steps leads from one to another.

    Args:
        hashes: shape (N,).
        colors: shape (N, COLORS).
        distance: bits, 0 to 63.
        color_distance: of 255.

    Returns:
        The rows that stand for each, and how many bits these differ by; both of shape (N,).
    """
    stands, bits = np.arange(len(hashes)), np.zeros(len(hashes), np.int64)
    search = _Search(distance)
    for row, word in enumerate(hashes.tolist()):
        near, far = search.within(word)
        if len(near):
            apart = np.abs(colors[near].astype(np.int16) - colors[row]).mean(1)
            near, far = near[apart <= color_distance], far[apart <= color_distance]
        if len(near):
            first = int(np.argmin(near))
            stands[row], bits[row] = near[first], far[first]
        else:
            search.add(row, word)
    return stands, bits


class _Search:
    """Finds hashes within d bits: of d + 1 bands one at least must be equal."""

    def __init__(self, distance: int) -> None:
        self._distance = distance
        edges = [HASH_BITS * k // (distance + 1) for k in range(distance + 2)]
        self._bands = [(low, (1 << (high - low)) - 1) for low, high in pairwise(edges)]
        self._buckets: list[defaultdict[int, tuple[array[int], array[int]]]] = [
            defaultdict(lambda: (array("Q"), array("q"))) for _ in self._bands
        ]

    def add(self, row: int, word: int) -> None:
        for buckets, (low, mask) in zip(self._buckets, self._bands, strict=True):
            words, rows = buckets[word >> low & mask]
            words.append(word)
            rows.append(row)

    def within(self, word: int) -> tuple[Rows, Rows]:
        """The rows of hashes within the distance, and how far each is; some come twice."""
        rows, bits = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for buckets, (low, mask) in zip(self._buckets, self._bands, strict=True):
            bucket = buckets.get(word >> low & mask)
            if bucket is None:
                continue
            far = np.bitwise_count(np.frombuffer(bucket[0], np.uint64) ^ np.uint64(word))
            near = far <= self._distance
            rows.append(np.frombuffer(bucket[1], np.int64)[near])
            bits.append(far[near].astype(np.int64))
        return np.concatenate(rows), np.concatenate(bits)
