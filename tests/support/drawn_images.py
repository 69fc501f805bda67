"""Images that the tests draw: none lies in the repository."""

import io

import numpy as np
from PIL import Image


def scene(seed, width=64, height=48):
    """Discs and bars of random colours: no two seeds look alike."""
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    pixels = np.ones((height, width, 3)) * chance.uniform(0, 255, 3)
    for _ in range(4):
        at, radius = chance.uniform(0, 1, 2), chance.uniform(0.1, 0.4)
        pixels[(x - at[0]) ** 2 + (y - at[1]) ** 2 < radius**2] = chance.uniform(0, 255, 3)
        left, right = np.sort(chance.uniform(0, 1, 2))
        pixels[(left < x) & (x < right) & (y > chance.uniform())] = chance.uniform(0, 255, 3)
    return Image.fromarray(pixels.astype(np.uint8))


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed, width=64, height=48):
    return encode(scene(seed, width, height))


def jpeg(seed, width=64, height=48, **options):
    return encode(scene(seed, width, height), "JPEG", **options)
