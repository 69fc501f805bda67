"""What training and evaluation see of an image: crops, flips, colours, tensors.

Every random choice is drawn from the generator that is given, so that the same generator state
gives the same view. Torchvision's algorithms, on Pillow alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Red, green and blue of CLIP's training images, of 1."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Their standard deviations."""

_TRIES = 10  # at a crop of the wished area and ratio, before the middle is taken
_LONGEST = 8  # sides of the middle square that are resized: enlarged, the whole could be a bomb
Bounds = tuple[float, float]
Size = int | tuple[int, int]
Box = tuple[int, int, int, int]


def random_resized_crop(
    image: Image.Image,
    size: Size,
    scale: Bounds = (0.9, 1.0),
    ratio: Bounds = (3 / 4, 4 / 3),
    *,
    rng: np.random.Generator,
) -> Image.Image:
    """A random part of the image, resized (bicubic, antialiased).

    Args:
        image: RGB.
        size: pixels of the result: a side, or (height, width).
        scale: the part's share of the area, drawn evenly.
        ratio: the part's width over its height, drawn evenly in its logarithm.
        rng: where the choice comes from.
    """
    return _resized(image.crop(_random_box(image.size, scale, ratio, rng)), size)


def center(image: Image.Image, size: int) -> Image.Image:
    """The middle square of the image after its shorter side was resized to `size`: CLIP's own
    preprocessing. Of a very long image only what is near the middle is resized."""
    image = image.crop(_near_middle(*image.size))
    width, height = image.size
    short = min(width, height)
    if short != size:
        image = _resized(image, (int(size * height / short), int(size * width / short)))
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def flip(image: Image.Image, probability: float, *, rng: np.random.Generator) -> Image.Image:
    """The image, mirrored left to right with that probability."""
    if probability and rng.random() < probability:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def color_jitter(
    image: Image.Image,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    *,
    rng: np.random.Generator,
) -> Image.Image:
    """The image with its colours changed, in random order.

    Each of the first three is scaled by a factor from [max(0, 1 - x), 1 + x]; hue is turned by up
    to `hue` (at most 0.5) of the circle.
    """
    changes: list[Callable[[Image.Image], Image.Image]] = []
    for enhancer, amount in (
        (ImageEnhance.Brightness, brightness),
        (ImageEnhance.Contrast, contrast),
        (ImageEnhance.Color, saturation),
    ):
        if amount:
            factor = rng.uniform(max(0.0, 1 - amount), 1 + amount)
            changes.append(partial(_enhanced, enhancer=enhancer, factor=factor))
    if hue:
        changes.append(partial(_turned, turn=rng.uniform(-hue, hue)))
    for at in rng.permutation(len(changes)):
        image = changes[at](image)
    return image


def to_tensor(
    image: Image.Image, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> Tensor:
    """An RGB image as float32 of shape (3, H, W): of 1, less `mean`, over `std`."""
    return to_tensors([image], mean, std)[0]


def to_tensors(
    images: Sequence[Image.Image],
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Tensor:
    """RGB images of one size as float32 of shape (B, 3, H, W): of 1, less `mean`, over `std`."""
    pixels_BHW3 = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    pixels_B3HW = pixels_BHW3.permute(0, 3, 1, 2).to(
        torch.float32, memory_format=torch.contiguous_format
    )
    spread = torch.tensor(std, dtype=torch.float32).view(3, 1, 1)
    middle = torch.tensor(mean, dtype=torch.float32).view(3, 1, 1)
    return pixels_B3HW.mul_(1 / (255 * spread)).sub_(middle / spread)


def _random_box(
    size: tuple[int, int], scale: Bounds, ratio: Bounds, rng: np.random.Generator
) -> Box:
    width, height = size
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    return _middle_box(width, height, ratio)


def _middle_box(width: int, height: int, ratio: Bounds) -> Box:
    """The largest part in the middle whose ratio is within the bounds."""
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _near_middle(width: int, height: int) -> Box:
    """All of the image, or of one that is longer than wide by far the part around the middle."""
    most = _LONGEST * min(width, height)
    left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
    return left, top, width - left, height - top


def _resized(image: Image.Image, size: Size) -> Image.Image:
    height, width = (size, size) if isinstance(size, int) else size
    return image.resize((width, height), Image.Resampling.BICUBIC)


Enhancer = Callable[
    [Image.Image], ImageEnhance.Color | ImageEnhance.Contrast | ImageEnhance.Brightness
]


def _enhanced(image: Image.Image, enhancer: Enhancer, factor: float) -> Image.Image:
    return enhancer(image).enhance(factor)


def _turned(image: Image.Image, turn: float) -> Image.Image:
    """Every hue turned by a share of the circle."""
    hue, saturation, value = image.convert("HSV").split()
    turned = Image.fromarray(np.asarray(hue) + np.uint8(round(turn * 255) % 256))
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")
