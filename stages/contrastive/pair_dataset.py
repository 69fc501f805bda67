"""What training and evaluation see of stored pairs: a crop and a caption, as arrays.

Every choice that is made for pair i of a run (which pair, crop, colours, caption) is a function of
(seed, i): no rank, thread or time enters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pipeline.errors import InputError
from stages.contrastive.caption_tokenizer import Words, mark, pad
from stages.data.hashing import permute
from stages.data.image_text_dataset import BadImage, ImageTextStore, Sample, decode_rgb
from stages.images.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    center,
    color_jitter,
    flip,
    random_resized_crop,
)
from stages.models.clip.configuration_clip import TextConfig
from stages.training.data_order import Shuffled, mix

_CHUNK = 8
"""Pairs that a thread makes at a time."""
T = TypeVar("T")


class View(NamedTuple):
    """A pair, ready for the towers."""

    pixels: npt.NDArray[np.uint8]
    """(height, width, 3)"""
    ids: list[int]
    """The caption between its marks."""
    places: npt.NDArray[np.int64] | None = None
    """The patches that are looked at, in their order; None: all."""


@dataclass(frozen=True)
class Augmentation:
    """How an image is changed each time that it is seen."""

    scale: tuple[float, float] = (0.9, 1.0)
    """The crop's share of the area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """The crop's width over its height."""
    flip: float = 0.0
    """How often it is mirrored."""
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Most that brightness, contrast, saturation and hue are changed by."""
    gray: float = 0.0
    """How often it loses its colours."""

    def __call__(self, image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
        """A changed view, `size` pixels a side."""
        image = random_resized_crop(image, size, self.scale, self.ratio, rng=rng)
        image = flip(image, self.flip, rng=rng)
        if any(self.jitter):
            image = color_jitter(image, *self.jitter, rng=rng)
        if self.gray and rng.random() < self.gray:
            image = image.convert("L").convert("RGB")
        return image


@dataclass(frozen=True)
class Views:
    """The pairs that training sees, by number: endless, in epochs of their own order.

    An epoch is as many whole steps as its pairs fill; those left over are other ones in each, so
    that no step holds a pair twice.
    """

    store: ImageTextStore
    tokenizer: Words
    text: TextConfig
    image_size: int
    augmentation: Augmentation
    seed: int
    global_batch_size: int
    any_caption: bool = True
    """Draw one of a pair's captions; else take its first."""
    patches: int = 0
    """Of an image, if some of them are hidden."""
    kept: int = 0
    """How many of them are looked at."""

    def __getitem__(self, number: int) -> View:
        """Pair `number` of the run.

        Raises:
            InputError: its image cannot be read.
        """
        sample = Shuffled(self.store, mix(self.seed, 1))[self._place(number)]  # type: ignore[arg-type]
        rng = np.random.default_rng(mix(self.seed, 2, number))
        image = self.augmentation(_decoded(sample), self.image_size, rng)
        chosen = int(rng.integers(len(sample.captions))) if self.any_caption else 0
        ids = self.tokenizer.encode(sample.captions[chosen])
        places = None
        if self.kept < self.patches:
            places = np.sort(rng.permutation(self.patches)[: self.kept])
        return View(np.asarray(image), mark(ids, self.text), places)

    def _place(self, number: int) -> int:
        """Where pair `number` is in the endless order of epochs."""
        step, at = divmod(number, self.global_batch_size)
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch * len(self.store) + within * self.global_batch_size + at

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps that the pairs fill."""
        return len(self.store) // self.global_batch_size


def drawn(size: int, limit: int, seed: int) -> list[int]:
    """Which of so many pairs are looked at where `limit` are enough (0: all), in random order:
    stored order may go by class or by source."""
    return [permute(i, size, key=mix(seed)) for i in range(min(limit or size, size))]


def plain_view(sample: Sample, tokenizer: Words, text: TextConfig, image_size: int) -> View:
    """A pair as evaluation sees it: the middle of the image, the main caption.

    Raises:
        InputError: the image cannot be read.
    """
    ids = tokenizer.encode(sample.captions[0])
    return View(middle(sample, image_size), mark(ids, text))


def middle(sample: Sample, size: int) -> npt.NDArray[np.uint8]:
    """The middle square of a pair's image.

    Raises:
        InputError: it cannot be read.
    """
    return np.asarray(center(_decoded(sample), size))


def collate(views: Sequence[View], text: TextConfig, device: torch.device) -> dict[str, Tensor]:
    """`pixels` (B, 3, H, W), normalised, and `tokens` (B, T) on the device; where patches are
    hidden, also `places` (B, K) of the others."""
    batch = {
        "pixels": to_pixels([view.pixels for view in views], device),
        "tokens": pad([view.ids for view in views], text).to(device),
    }
    places = [view.places for view in views if view.places is not None]
    if places:
        batch["places"] = torch.from_numpy(np.stack(places)).to(device)
    return batch


def to_pixels(images: Sequence[npt.NDArray[np.uint8]], device: torch.device) -> Tensor:
    """Images (H, W, 3) as normalised pixels_B3HW: bytes travel, the device makes numbers."""
    bytes_BHW3 = torch.from_numpy(np.stack(images)).to(device)
    numbers = bytes_BHW3.permute(0, 3, 1, 2).float().contiguous()
    mean, std = (torch.tensor(c, device=device).view(3, 1, 1) for c in (CLIP_MEAN, CLIP_STD))
    return numbers.div_(255).sub_(mean).div_(std)


def _decoded(sample: Sample) -> Image.Image:
    try:
        return decode_rgb(sample.image)
    except BadImage as error:
        raise InputError(
            f"the image of {sample.key} cannot be read: {error}",
            where="pairs",
            remedy="make the pairs again with `image_text`, which leaves such images out",
        ) from error


class Ahead(Generic[T]):
    """Items of steps, made by threads while the steps before are trained on."""

    def __init__(
        self,
        make: Callable[[int], T],
        numbers: Callable[[int], range],
        *,
        threads: int,
        steps: int = 2,
    ) -> None:
        """`make` gives an item by its number, `numbers` those of a step; `steps` are made ahead."""
        self._make, self._numbers, self._steps = make, numbers, steps
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pairs")
        self._coming: dict[int, list[Future[list[T]]]] = {}

    def take(self, step: int) -> list[T]:
        """The items of a step; whatever was made for others that now lie behind is dropped."""
        for known in [at for at in self._coming if not step <= at <= step + self._steps]:
            for future in self._coming.pop(known):
                future.cancel()
        for coming in range(step, step + self._steps + 1):
            if coming not in self._coming:
                self._coming[coming] = self._ask(self._numbers(coming))
        return [item for future in self._coming.pop(step) for item in future.result()]

    def _ask(self, numbers: range) -> list[Future[list[T]]]:
        cuts = [numbers[at : at + _CHUNK] for at in range(0, len(numbers), _CHUNK)]
        return [self._pool.submit(_made, self._make, cut) for cut in cuts]


def _made(make: Callable[[int], Any], numbers: range) -> list[Any]:
    return [make(number) for number in numbers]
