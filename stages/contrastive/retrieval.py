"""Finding the caption of an image among all captions, and the image of a caption."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DEPTHS = (1, 5, 10)


def recalls(
    image_NE: Tensor, text_ME: Tensor, truth_NM: Tensor, at: Sequence[int] = DEPTHS
) -> dict[str, float]:
    """The share of images one of whose captions is among the k nearest captions
    (`image_to_text_r{k}`), and of captions one of whose images is among the k nearest images
    (`text_to_image_r{k}`).

    Args:
        image_NE: of norm 1.
        text_ME: of norm 1.
        truth_NM: True where a caption belongs to an image. One that belongs to none is no question,
            but stands in the way of others.
        at: the depths k.
    """
    cosines_NM = image_NE @ text_ME.T
    return {
        **_recall("image_to_text", cosines_NM, truth_NM, at),
        **_recall("text_to_image", cosines_NM.T, truth_NM.T, at),
    }


def alike(rows: Sequence[str], columns: Sequence[str]) -> Tensor:
    """Where a row's text is a column's, as bool."""
    number = {text: i for i, text in enumerate(dict.fromkeys([*rows, *columns]))}
    row_N, column_M = (torch.tensor([number[text] for text in side]) for side in (rows, columns))
    return row_N[:, None] == column_M


def _recall(name: str, cosines_QC: Tensor, truth_QC: Tensor, at: Sequence[int]) -> dict[str, float]:
    """Q queries among C candidates. The place of the best right candidate counts; wrong ones that
    are as near as it stand before it, so that a model which says the same of all finds nothing."""
    best_Q = cosines_QC.masked_fill(~truth_QC, -torch.inf).amax(1, keepdim=True)
    before_Q = ((cosines_QC >= best_Q) & ~truth_QC).sum(1)
    asked_Q = truth_QC.any(1)
    return {f"{name}_r{k}": (before_Q[asked_Q] < k).double().mean().item() for k in at}
