"""Captions as the text tower reads them: bos, the text, eos, padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.data.tokenizer import Tokenizer
from stages.models.clip_config import TextConfig

_STEP = 4
"""Lengths are rounded up to it, so that batches come in few shapes."""


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], shape: TextConfig, *, trim: bool = True
) -> Tensor:
    """Ids_BT of captions. Those longer than the context lose their end, but not its mark.

    Trimmed, T is what the longest needs: nothing right of an end is ever looked at.
    """
    rows = [mark(ids, shape) for ids in tokenizer.encode_batch(list(texts))]
    return pad(rows, shape, trim=trim)


def mark(ids: Sequence[int], shape: TextConfig) -> list[int]:
    """The ids of a text, cut to fit, between its two marks."""
    return [shape.bos, *ids[: shape.context - 2], shape.eos]


def pad(rows: Sequence[Sequence[int]], shape: TextConfig, *, trim: bool = True) -> Tensor:
    """Rows of ids as one tensor."""
    longest = max(map(len, rows))
    length = min(-(-longest // _STEP) * _STEP, shape.context) if trim else shape.context
    return torch.tensor([[*row, *[shape.pad] * (length - len(row))] for row in rows])
