"""Image-text retrieval: recall@k of captions by image and of images by caption.

Queries are compared with all candidates in blocks, so that memory does not grow with the number of
images and captions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

RECALL_DEPTHS = (1, 5, 10)
BLOCK_SIMILARITIES = 1 << 24
"""Similarities in memory at once, at least those of one query with all candidates."""


def recall_at_k(
    image_NE: Tensor,
    text_ME: Tensor,
    captions: Sequence[Sequence[str]],
    texts: Sequence[str],
    depths: Sequence[int] = RECALL_DEPTHS,
) -> dict[str, float]:
    """Return `image_to_text_r{k}`, the fraction of images with one of their captions among the k
    most similar texts, and `text_to_image_r{k}`, the fraction of texts likewise.

    Args:
        image_NE: embeddings of norm 1.
        text_ME: embeddings of norm 1.
        captions: captions of each image.
        texts: texts of `text_ME`; one that belongs to no image is a distractor, not a query.
        depths: values of k.
    """
    single = [[text] for text in texts]
    return {
        **_recall("image_to_text", image_NE, text_ME, captions, _numbers_by_text(single), depths),
        **_recall("text_to_image", text_ME, image_NE, single, _numbers_by_text(captions), depths),
    }


def _numbers_by_text(texts: Iterable[Iterable[str]]) -> Mapping[str, list[int]]:
    """Return the numbers of the items that have each text."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, own in enumerate(texts):
        for text in own:
            found[text].append(number)
    return found


def _recall(
    name: str,
    query_QE: Tensor,
    candidate_CE: Tensor,
    texts: Sequence[Sequence[str]],
    candidates_by_text: Mapping[str, Sequence[int]],
    depths: Sequence[int],
) -> dict[str, float]:
    """Return the recall of queries, each with its texts and so its correct candidates.

    The rank of the most similar correct candidate counts. Wrong candidates of the same similarity
    rank before it, so that a model with constant embeddings has a recall of 0.
    """
    size = max(1, BLOCK_SIMILARITIES // len(candidate_CE))
    ranks = []
    for first in range(0, len(query_QE), size):
        block = slice(first, first + size)
        cosines_BC = query_QE[block] @ candidate_CE.T
        matches_BC = np.zeros(cosines_BC.shape, dtype=bool)
        for row, own in enumerate(texts[block]):
            for text in own:
                matches_BC[row, candidates_by_text.get(text, [])] = True
        correct_BC = torch.from_numpy(matches_BC).to(cosines_BC.device)
        best_B = cosines_BC.masked_fill(~correct_BC, -torch.inf).amax(1, keepdim=True)
        before_B = ((cosines_BC >= best_B) & ~correct_BC).sum(1)
        ranks.append(before_B[correct_BC.any(1)])
    before = torch.cat(ranks)
    return {f"{name}_r{k}": (before < k).double().mean().item() for k in depths}
