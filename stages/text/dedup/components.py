"""Connected components of row numbers, and the survivor of each.

The components are those of scipy, which names them by numbers of its own: here each has the name of
its least row, so that forests of different shards can be merged.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def components(size: int, left: Rows, right: Rows) -> Rows:
    """Return the least row of each row's connected component, shape (size,).

    Hooking and pointer jumping: every root takes the least root that any of its links reaches,
    then all pointers are followed to their roots. The number of rounds is logarithmic on anything
    but long chains; each takes a few passes over the links.
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


def survivors(groups: Rows, preference: Rows) -> Rows:
    """Return the survivor of each row's group: the most preferred row, then the first."""
    order = np.lexsort((np.arange(len(groups)), -preference, groups))
    ordered = groups[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    chosen = np.repeat(order[starts], np.diff(np.r_[starts, len(ordered)]))
    result = np.empty(len(groups), np.int64)
    result[order] = chosen
    return result
