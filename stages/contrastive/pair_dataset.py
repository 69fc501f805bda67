"""Training and evaluation pairs: stored samples as pixel arrays and token ids.

Every random choice about pair i of a run (sample, crop, colours, caption, patches) is a function of
(seed, i), independent of ranks, threads and time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pipeline.errors import InputError
from stages.contrastive.augmentation import Augmentation
from stages.contrastive.caption_tokenizer import CaptionTokenizer, add_special_tokens, pad_captions
from stages.data.hashing import permute
from stages.data.image_text_dataset import BadImage, ImageTextStore, Sample, decode_rgb
from stages.images.transforms import resize_and_center_crop
from stages.models.clip.configuration_clip import CLIP_MEAN, CLIP_STD, TextConfig
from stages.training.data_order import Shuffled, derive_seed


class Pair(NamedTuple):
    """An image and a caption, ready to be collated."""

    pixels: npt.NDArray[np.uint8]
    """(height, width, 3)"""
    ids: list[int]
    """Token ids of the caption between bos and eos."""
    kept_patches: npt.NDArray[np.int64] | None = None
    """Sorted numbers of the patches that patch dropout keeps; None keeps all."""


@dataclass(frozen=True)
class PairDataset:
    """The training pairs of a run by number: endless, each epoch in an order of its own.

    An epoch has as many whole steps as its pairs fill; the remaining pairs differ from epoch to
    epoch, and no step holds a pair twice.
    """

    store: ImageTextStore
    tokenizer: CaptionTokenizer
    text: TextConfig
    image_size: int
    augmentation: Augmentation
    seed: int
    global_batch_size: int
    random_caption: bool = True
    """Draw one of a sample's captions each time; else take the first."""
    patches: int = 0
    """Number of patches of an image, if patch dropout is on."""
    kept: int = 0
    """Number of patches that patch dropout keeps."""

    def __getitem__(self, number: int) -> Pair:
        """Return pair `number` of the run.

        Raises:
            InputError: its image cannot be decoded.
        """
        sample = Shuffled(self.store, derive_seed(self.seed, 1))[self._position(number)]  # type: ignore[arg-type]
        rng = np.random.default_rng(derive_seed(self.seed, 2, number))
        image = self.augmentation(_decode(sample), self.image_size, rng)
        chosen = int(rng.integers(len(sample.captions))) if self.random_caption else 0
        ids = self.tokenizer.encode(sample.captions[chosen])
        kept = None
        if self.kept < self.patches:
            kept = np.sort(rng.permutation(self.patches)[: self.kept])
        return Pair(np.asarray(image), add_special_tokens(ids, self.text), kept)

    def _position(self, number: int) -> int:
        """Return the position of pair `number` in the endless order of epochs."""
        step, at = divmod(number, self.global_batch_size)
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch * len(self.store) + within * self.global_batch_size + at

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole steps that the pairs fill."""
        return len(self.store) // self.global_batch_size


def sample_indices(size: int, limit: int, seed: int) -> list[int]:
    """Return `limit` of `size` indices (0: all) in random order, because stored order may be by
    class or source."""
    return [permute(i, size, key=derive_seed(seed)) for i in range(min(limit or size, size))]


def evaluation_pair(
    sample: Sample, tokenizer: CaptionTokenizer, text: TextConfig, image_size: int
) -> Pair:
    """Return a pair without augmentation: the center of the image and the main caption.

    Raises:
        InputError: the image cannot be decoded.
    """
    ids = tokenizer.encode(sample.captions[0])
    return Pair(center_crop(sample, image_size), add_special_tokens(ids, text))


def center_crop(sample: Sample, size: int) -> npt.NDArray[np.uint8]:
    """Return the center square of a sample's image.

    Raises:
        InputError: the image cannot be decoded.
    """
    return np.asarray(resize_and_center_crop(_decode(sample), size))


def collate(pairs: Sequence[Pair], text: TextConfig, device: torch.device) -> dict[str, Tensor]:
    """Return `pixels` (B, 3, H, W), normalized, and `tokens` (B, T) on the device; with patch
    dropout also `kept_patches` (B, K)."""
    batch = {
        "pixels": normalize_pixels([pair.pixels for pair in pairs], device),
        "tokens": pad_captions([pair.ids for pair in pairs], text).to(device),
    }
    kept = [pair.kept_patches for pair in pairs if pair.kept_patches is not None]
    if kept:
        batch["kept_patches"] = torch.from_numpy(np.stack(kept)).to(device)
    return batch


def normalize_pixels(images: Sequence[npt.NDArray[np.uint8]], device: torch.device) -> Tensor:
    """Return images (H, W, 3) as pixels_B3HW, normalized by CLIP's mean and standard deviation.

    Bytes are copied to the device and converted there.
    """
    bytes_BHW3 = torch.from_numpy(np.stack(images)).to(device)
    pixels_B3HW = bytes_BHW3.permute(0, 3, 1, 2).float().contiguous()
    mean, std = (torch.tensor(c, device=device).view(3, 1, 1) for c in (CLIP_MEAN, CLIP_STD))
    return pixels_B3HW.div_(255).sub_(mean).div_(std)


def _decode(sample: Sample) -> Image.Image:
    try:
        return decode_rgb(sample.image)
    except BadImage as error:
        raise InputError(
            f"the image of {sample.key} cannot be decoded: {error}",
            where="pairs",
            remedy="rebuild the pairs with `image_text`, which drops such images",
        ) from error
