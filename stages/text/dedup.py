"""Groups of equal things and their survivors: connected components over arrays, no shuffling.

Only hashes and row numbers come here, never text.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.text.words import Hashes

Rows = npt.NDArray[np.int64]


def equal_pairs(hashes: Hashes) -> tuple[Rows, Rows]:
    """A link from every row to the next row with the same hash, shapes (E,)."""
    order = np.argsort(hashes, kind="stable")
    same = hashes[order[1:]] == hashes[order[:-1]]
    return order[:-1][same], order[1:][same]


def components(size: int, left: Rows, right: Rows) -> Rows:
    """The least row of each row's connected component, shape (size,).

    Rounds of hooking and pointer jumping: every root takes the least root that any of its links
    reaches, then all pointers are followed to their roots. Logarithmically many rounds on
    anything but long chains, each a few passes over the links.
    """
    root = np.arange(size, dtype=np.int64)
    while len(left):
        a, b = root[left], root[right]
        low, high = np.minimum(a, b), np.maximum(a, b)
        open_links = low != high
        if not open_links.any():
            break
        left, right = left[open_links], right[open_links]
        np.minimum.at(root, high[open_links], low[open_links])
        while not np.array_equal(root, root[root]):
            root = root[root]
    return root


def survivors(groups: Rows, preference: npt.NDArray[np.int64]) -> Rows:
    """For each row, the row that stands for its group: the most preferred, then the first."""
    order = np.lexsort((np.arange(len(groups)), -preference, groups))
    ordered = groups[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    chosen = np.repeat(order[starts], np.diff(np.r_[starts, len(ordered)]))
    result = np.empty(len(groups), np.int64)
    result[order] = chosen
    return result


def exact_survivors(low: Hashes, high: Hashes) -> Rows:
    """For each row, the first row with the same 128-bit hash."""
    order = np.lexsort((np.arange(len(low)), high, low))
    change = (low[order[1:]] != low[order[:-1]]) | (high[order[1:]] != high[order[:-1]])
    starts = np.flatnonzero(np.r_[True, change]) if len(low) else np.empty(0, np.int64)
    result = np.empty(len(low), np.int64)
    result[order] = np.repeat(order[starts], np.diff(np.r_[starts, len(low)]))
    return result


def near_survivors(bands: Hashes, preference: npt.NDArray[np.int64]) -> Rows:
    """For each row of `bands` (shape (rows, bands)), the survivor of its near-duplicates."""
    links = [equal_pairs(np.ascontiguousarray(band)) for band in bands.T]
    left = np.concatenate([a for a, _ in links]) if links else np.empty(0, np.int64)
    right = np.concatenate([b for _, b in links]) if links else np.empty(0, np.int64)
    return survivors(components(len(bands), left, right), preference)
