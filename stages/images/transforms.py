"""Image transforms of training and evaluation: crops, flips, colour jitter.

Every random choice is drawn from the given generator, so that equal generator states give equal
views. Torchvision's algorithms on Pillow alone, because Torchvision draws from a global generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance

_ATTEMPTS = 10  # to draw a crop that lies within the image, before a center crop is taken
_MAX_ASPECT = 8  # of the part that is resized: a whole long image might not fit into memory
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
    """Return a random crop of the image, resized (bicubic, antialiased).

    Args:
        image: RGB.
        size: side of the result, or (height, width), pixels.
        scale: range of the crop's fraction of the area, uniform.
        ratio: range of the crop's aspect ratio (width over height), uniform in its logarithm.
        rng: generator of the choice.
    """
    return _resize(image.crop(_random_box(image.size, scale, ratio, rng)), size)


def resize_and_center_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` and return the center square: CLIP's own preprocessing.

    Only the central part of a very long image is resized.
    """
    image = image.crop(_central_box(*image.size))
    width, height = image.size
    short = min(width, height)
    if short != size:
        image = _resize(image, (int(size * height / short), int(size * width / short)))
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def random_flip(image: Image.Image, probability: float, *, rng: np.random.Generator) -> Image.Image:
    """Return the image, flipped horizontally with a probability."""
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
    """Return the image with brightness, contrast, saturation and hue changed in random order.

    Each of the first three is scaled by a factor from [max(0, 1 - x), 1 + x]; the hue is shifted by
    up to `hue` (at most 0.5) of the circle.
    """
    changes: list[Callable[[Image.Image], Image.Image]] = []
    for enhancer, amount in (
        (ImageEnhance.Brightness, brightness),
        (ImageEnhance.Contrast, contrast),
        (ImageEnhance.Color, saturation),
    ):
        if amount:
            factor = rng.uniform(max(0.0, 1 - amount), 1 + amount)
            changes.append(partial(_enhance, enhancer=enhancer, factor=factor))
    if hue:
        changes.append(partial(_shift_hue, shift=rng.uniform(-hue, hue)))
    for at in rng.permutation(len(changes)):
        image = changes[at](image)
    return image


def _random_box(
    size: tuple[int, int], scale: Bounds, ratio: Bounds, rng: np.random.Generator
) -> Box:
    width, height = size
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    return _center_box(width, height, ratio)


def _center_box(width: int, height: int, ratio: Bounds) -> Box:
    """Return the largest center crop whose aspect ratio is within the bounds."""
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _central_box(width: int, height: int) -> Box:
    """Return the box of the whole image, or of the central part of a very long one."""
    longest = _MAX_ASPECT * min(width, height)
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return left, top, width - left, height - top


def _resize(image: Image.Image, size: Size) -> Image.Image:
    height, width = (size, size) if isinstance(size, int) else size
    return image.resize((width, height), Image.Resampling.BICUBIC)


Enhancer = Callable[
    [Image.Image], ImageEnhance.Color | ImageEnhance.Contrast | ImageEnhance.Brightness
]


def _enhance(image: Image.Image, enhancer: Enhancer, factor: float) -> Image.Image:
    return enhancer(image).enhance(factor)


def _shift_hue(image: Image.Image, shift: float) -> Image.Image:
    """Return the image with every hue shifted by a fraction of the circle."""
    hue, saturation, value = image.convert("HSV").split()
    shifted = Image.fromarray(np.asarray(hue) + np.uint8(round(shift * 255) % 256))
    return Image.merge("HSV", (shifted, saturation, value)).convert("RGB")
