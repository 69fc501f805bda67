"""Finding the caption of an image among all captions, and the image of a caption.

Queries are compared with all candidates a block at a time: memory is bounded by the block, however
many images and captions there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

DEPTHS = (1, 5, 10)
CELLS = 1 << 24
"""Similarities of a block; those of one query with all candidates, where they are more."""


def recalls(
    image_NE: Tensor,
    text_ME: Tensor,
    captions: Sequence[Sequence[str]],
    texts: Sequence[str],
    at: Sequence[int] = DEPTHS,
) -> dict[str, float]:
    """The share of images one of whose captions is among the k nearest captions
    (`image_to_text_r{k}`), and of captions one of whose images is among the k nearest images
    (`text_to_image_r{k}`).

    Args:
        image_NE: of norm 1.
        text_ME: of norm 1.
        captions: of each image.
        texts: of `text_ME`. One that is no image's is no question, but stands in the way of others.
        at: the depths k.
    """
    alone = [[text] for text in texts]
    return {
        **_recall("image_to_text", image_NE, text_ME, captions, _holders(alone), at),
        **_recall("text_to_image", text_ME, image_NE, alone, _holders(captions), at),
    }


def _holders(sides: Iterable[Iterable[str]]) -> Mapping[str, list[int]]:
    """Who has a text."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, texts in enumerate(sides):
        for text in texts:
            found[text].append(number)
    return found


def _recall(
    name: str,
    query_QE: Tensor,
    candidate_CE: Tensor,
    texts: Sequence[Sequence[str]],
    holders: Mapping[str, Sequence[int]],
    at: Sequence[int],
) -> dict[str, float]:
    """Queries by their texts, and candidates by whom a text is right. The place of the best right
    candidate counts; wrong ones that are as near as it stand before it, so that a model which says
    the same of all finds nothing."""
    size = max(1, CELLS // len(candidate_CE))
    places = []
    for first in range(0, len(query_QE), size):
        block = slice(first, first + size)
        cosines_BC = query_QE[block] @ candidate_CE.T
        right_BC = np.zeros(cosines_BC.shape, dtype=bool)
        for row, own in enumerate(texts[block]):
            for text in own:
                right_BC[row, holders.get(text, [])] = True
        truth_BC = torch.from_numpy(right_BC).to(cosines_BC.device)
        best_B = cosines_BC.masked_fill(~truth_BC, -torch.inf).amax(1, keepdim=True)
        before_B = ((cosines_BC >= best_B) & ~truth_BC).sum(1)
        places.append(before_B[truth_BC.any(1)])
    before = torch.cat(places)
    return {f"{name}_r{k}": (before < k).double().mean().item() for k in at}
