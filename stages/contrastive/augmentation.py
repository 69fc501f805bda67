"""Random augmentation of training images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from stages.images.transforms import color_jitter, random_flip, random_resized_crop


@dataclass(frozen=True)
class Augmentation:
    """Crop, flip and colour changes, drawn anew each time an image is used."""

    scale: tuple[float, float] = (0.9, 1.0)
    """Range of the crop's area, as a fraction of the image's."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's aspect ratio, width over height."""
    flip_prob: float = 0.0
    """Probability of a horizontal flip."""
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Largest changes of brightness, contrast, saturation and hue."""
    gray_scale_prob: float = 0.0
    """Probability of conversion to grey."""

    def __call__(self, image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
        """Return an augmented view of the image, `size` pixels a side."""
        image = random_resized_crop(image, size, self.scale, self.ratio, rng=rng)
        image = random_flip(image, self.flip_prob, rng=rng)
        if any(self.color_jitter):
            image = color_jitter(image, *self.color_jitter, rng=rng)
        if self.gray_scale_prob and rng.random() < self.gray_scale_prob:
            image = image.convert("L").convert("RGB")
        return image
