"""Spans of characters: first, and one past the last."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]
Span = tuple[int, int]


def merge_spans(starts: Places, ends: Places) -> list[Span]:
    """Merge spans that touch or overlap, in order."""
    spans: list[Span] = []
    for start, end in sorted(zip(starts.tolist(), ends.tolist(), strict=True)):
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(spans[-1][1], end)
        else:
            spans.append((start, end))
    return spans


def complement_spans(starts: Places, ends: Places, size: int) -> list[Span]:
    """Return the spans between the given ones in `size` characters: one more than there are merged
    spans; the first and the last may be empty."""
    edges = [0, *(edge for span in merge_spans(starts, ends) for edge in span), size]
    return list(zip(edges[::2], edges[1::2], strict=True))
