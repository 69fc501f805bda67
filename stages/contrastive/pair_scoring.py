"""CLIP scores: the cosine similarity that a CLIP model gives an image and its caption."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stages.images.selection import RecordTable
from stages.images.shard_writer import read_rows_of

if TYPE_CHECKING:
    import torch

    from stages.contrastive.caption_tokenizer import CaptionTokenizer
    from stages.models.clip.modeling_clip import CLIP

BATCH_SIZE = 64
_DECIMALS = 4  # that do not depend on the batch size and the number of threads

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoringTask:
    """The rows of one annotation table to score."""

    model: Path
    table: Path
    rows: npt.NDArray[np.int64]
    """Numbers of the rows in the table, in order."""


def scoring_tasks(
    model: Path, records: RecordTable, rows: npt.NDArray[np.int64]
) -> list[ScoringTask]:
    """Return the tasks that score the rows, one per annotation table."""
    return [ScoringTask(model, table, numbers) for table, numbers in records.by_commit(rows)]


def score_pairs(task: ScoringTask, commit: Path) -> None:
    """Score rows of an annotation table and commit their cosines: float64 (rows,)."""
    from pipeline.atomic_io import write_atomic

    rows = read_rows_of(task.table, task.rows, ["image", "captions"])
    pairs = ((row["image"], row["captions"][0]) for row in rows)
    scores = []
    while batch := list(islice(pairs, BATCH_SIZE)):
        scores.append(clip_scores(task.model, batch))
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate(scores))
    write_atomic(commit, buffer.getvalue(), durable=False)


def clip_scores(model: Path, pairs: Sequence[tuple[bytes, str]]) -> Scores:
    """Return the cosine similarity of each image and caption, rounded to four decimals.

    Args:
        model: folder of a CLIP with its tokenizer.
        pairs: encoded images with captions, B of them.

    Returns:
        Shape (B,).

    Raises:
        InputError: the folder has no CLIP, or no tokenizer.
    """
    import torch

    from stages.contrastive.caption_tokenizer import encode_captions
    from stages.contrastive.pair_dataset import normalize_pixels
    from stages.data.image_text_dataset import decode_rgb
    from stages.images.transforms import resize_and_center_crop

    clip, tokenizer, device = _load(model)
    size = clip.config.vision.image_size
    images = [resize_and_center_crop(decode_rgb(image), size) for image, _ in pairs]
    pixels_B3HW = normalize_pixels([np.asarray(image) for image in images], device)
    tokens_BT = encode_captions(tokenizer, [caption for _, caption in pairs], clip.config.text)
    with torch.inference_mode():
        images_BE = clip.encode_image(pixels_B3HW)
        texts_BE = clip.encode_text(tokens_BT.to(device))
    scores: Scores = (images_BE * texts_BE).sum(1).double().cpu().numpy()
    return scores.round(_DECIMALS)


@lru_cache(1)
def _load(folder: Path) -> tuple[CLIP, CaptionTokenizer, torch.device]:
    import torch

    from stages.contrastive.caption_tokenizer import open_caption_tokenizer
    from stages.models.clip.conversion_clip import load_clip

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return load_clip(folder).to(device), open_caption_tokenizer(folder), device
