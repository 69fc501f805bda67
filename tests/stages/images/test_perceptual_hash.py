"""Perceptual hashes against their definition, and the search against comparing all with all."""

import numpy as np
import pytest
from drawn_images import encode, scene
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.data.image_text_dataset import decode_rgb
from stages.images.perceptual_hash import COLOR_BYTES, find_near_duplicates, perceptual_hash


def by_comparing_all(hashes, colors, distance, color_distance):
    """Return the first kept image that is near each one, or itself, by brute force."""
    stands, bits, kept = [], [], []
    for row, word in enumerate(hashes):
        near = [
            (at, (hashes[at] ^ word).bit_count())
            for at in kept
            if (hashes[at] ^ word).bit_count() <= distance
            and np.mean(np.abs(colors[at].astype(int) - colors[row].astype(int))) <= color_distance
        ]
        stands.append(near[0][0] if near else row)
        bits.append(near[0][1] if near else 0)
        if not near:
            kept.append(row)
    return stands, bits


def found(hashes, colors, distance, color_distance):
    stands, bits = find_near_duplicates(
        np.array(hashes, np.uint64), colors, distance, color_distance
    )
    return stands.tolist(), bits.tolist()


def variants(image):
    """Return images that a copy on the web may look like."""
    half = image.resize((image.width // 2, image.height // 2), Image.BICUBIC)
    return [
        image,
        half,
        decode_rgb(encode(image, "JPEG", quality=60)),
        image.point(lambda value: min(255, value + 3)),
    ]


@pytest.fixture(scope="module")
def looks():
    """Return the hashes of 360 images: 90 scenes in four variants each, shuffled."""
    images = [variant for seed in range(90) for variant in variants(scene(seed, 96, 72))]
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    pairs = [perceptual_hash(images[at]) for at in order]
    colors = np.frombuffer(b"".join(c for _, c in pairs), np.uint8).reshape(-1, COLOR_BYTES)
    return [word for word, _ in pairs], colors, [at // 4 for at in order]


@pytest.mark.parametrize("distance", [0, 1, 4, 7, 15])
@pytest.mark.parametrize("color", [0.0, 4.0, 255.0])
def test_copies_are_those_that_comparing_all_finds(looks, distance, color):
    hashes, colors, _ = looks
    wanted = by_comparing_all(hashes, colors, distance, color)
    assert found(hashes, colors, distance, color) == wanted
    assert distance == 0 or color == 0 or wanted[0] != list(range(len(hashes)))


def test_scaled_recompressed_and_brighter_copies_are_found_and_no_other_scene(looks):
    hashes, colors, scenes = looks
    stands, _ = found(hashes, colors, 4, 6.0)
    assert all(scenes[row] == scenes[at] for row, at in enumerate(stands))
    assert len(set(stands)) <= 100  # of 90 scenes


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 63), st.integers(0, 63)), max_size=40),
    st.integers(0, 6),
    st.integers(0, 2),
)
def test_near_hashes_are_found_whatever_bits_differ(flips, distance, color):
    bases = [0, 2**64 - 1, 0x0123456789ABCDEF, 0x8000000000000001]
    hashes = [bases[base] ^ (1 << a) ^ (1 << b) for base, a, b in flips]
    colors = np.array([[base + a % 3] * COLOR_BYTES for base, a, _ in flips], np.uint8)
    colors = colors.reshape(-1, COLOR_BYTES)
    assert found(hashes, colors, distance, color) == by_comparing_all(
        hashes, colors, distance, color
    )


def test_no_chain_of_small_steps_drops_what_is_far():
    hashes = [0, 0b11, 0b1111, 0b111111]
    colors = np.zeros((4, COLOR_BYTES), np.uint8)
    assert found(hashes, colors, 2, 0.0) == ([0, 0, 2, 2], [0, 2, 0, 2])


def test_a_bit_is_set_where_brightness_falls_to_the_right():
    bars = np.zeros((8, 9, 3), np.uint8)
    bars[:, 0] = 200  # one step down, at the left
    word, colors = perceptual_hash(Image.fromarray(bars).resize((36, 32), Image.NEAREST))
    assert word == 0x8080808080808080 and len(colors) == COLOR_BYTES
    flat, blue = (perceptual_hash(Image.new("RGB", (50, 40), color)) for color in ("white", "blue"))
    assert flat[0] == blue[0] == 0 and flat[1] != blue[1]
