"""Near-duplicate images: a 64-bit difference hash, mean colours, and the search over both.

The hash has one bit per pair of horizontal neighbours of a 9 x 8 grey reduction: whether brightness
falls from left to right (dHash; Krawetz 2013) by more than recompression noise. It survives
rescaling and changes of brightness. Because it does not see colour or flat images, the colours of a
4 x 4 reduction are compared, too.

Hand-written because `imagehash` has neither the noise threshold nor colours, and a BK-tree compares
hashes one by one in Python where bands compare buckets of them at once.
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
COLOR_BYTES = 4 * 4 * 3
"""Bytes of the colours of a 4 x 4 reduction."""

Hashes = npt.NDArray[np.uint64]
Colors = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]


def perceptual_hash(image: Image.Image) -> tuple[int, bytes]:
    """Return the difference hash of an RGB image, and its `COLOR_BYTES` bytes of colours."""
    small = image.resize((36, 32), Image.Resampling.BOX)
    gray = np.asarray(small.resize((9, 8), Image.Resampling.BOX).convert("L"), np.int16)
    bits = np.packbits(gray[:, :-1] > gray[:, 1:] + _NOISE)
    colors = small.resize((4, 4), Image.Resampling.BOX).tobytes()
    return int.from_bytes(bits.tobytes(), "big"), colors


def find_near_duplicates(
    hashes: Hashes, colors: Colors, max_hamming_distance: int, max_color_distance: float
) -> tuple[Rows, Rows]:
    """Return the survivor of each image: the first kept image that is similar to it, or itself.

    Images are similar if their hashes differ in at most `max_hamming_distance` bits and their
    colours by at most `max_color_distance` on average. Images are compared with kept images alone,
    so that a chain of small steps does not join images that differ.

    Args:
        hashes: shape (N,).
        colors: shape (N, COLOR_BYTES).
        max_hamming_distance: bits, 0 to 63.
        max_color_distance: out of 255.

    Returns:
        The row of each image's survivor and the Hamming distance to it; both of shape (N,).
    """
    survivor, distance = np.arange(len(hashes)), np.zeros(len(hashes), np.int64)
    index = _HammingIndex(max_hamming_distance)
    for row, word in enumerate(hashes.tolist()):
        near, far = index.neighbors(word)
        if len(near):
            apart = np.abs(colors[near].astype(np.int16) - colors[row]).mean(1)
            near, far = near[apart <= max_color_distance], far[apart <= max_color_distance]
        if len(near):
            first = int(np.argmin(near))
            survivor[row], distance[row] = near[first], far[first]
        else:
            index.add(row, word)
    return survivor, distance


class _HammingIndex:
    """Index of hashes by bands: of d + 1 bands of hashes within d bits, at least one is equal."""

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

    def neighbors(self, word: int) -> tuple[Rows, Rows]:
        """Return the rows of hashes within the distance, and their distances; rows can repeat."""
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
