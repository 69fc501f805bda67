"""Views of images against written-out references: torchvision's crop, torch's own interpolation."""

import colorsys
import math

import numpy as np
import pytest
import torch
from drawn_images import scene
from PIL import Image

from stages.images import transforms
from stages.images.transforms import (
    color_jitter,
    random_flip,
    random_resized_crop,
    resize_and_center_crop,
)


def reference_box(width, height, scale, ratio, rng):
    """torchvision.transforms.RandomResizedCrop.get_params, with a generator that is given."""
    area = height * width
    log_ratio = np.log(np.array(ratio))
    for _ in range(10):
        target_area = area * rng.uniform(scale[0], scale[1])
        aspect_ratio = math.exp(rng.uniform(log_ratio[0], log_ratio[1]))
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            i = rng.integers(0, height - h + 1)
            j = rng.integers(0, width - w + 1)
            return i, j, h, w
    in_ratio = float(width) / float(height)
    if in_ratio < min(ratio):
        w = width
        h = round(w / min(ratio))
    elif in_ratio > max(ratio):
        h = height
        w = round(h * max(ratio))
    else:
        w = width
        h = height
    return (height - h) // 2, (width - w) // 2, h, w


def generator(seed):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("shape", [(64, 64), (200, 30), (30, 200), (1, 1), (97, 61)])
@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.08, 1.0), (1.0, 1.0)])
def test_a_random_crop_is_that_of_torchvision(shape, scale):
    image = scene(3, *shape)
    for seed in range(20):
        top, left, h, w = reference_box(*shape, scale, (3 / 4, 4 / 3), generator(seed))
        wanted = image.crop((left, top, left + w, top + h)).resize((24, 24), Image.BICUBIC)
        found = random_resized_crop(image, 24, scale, rng=generator(seed))
        assert found.size == (24, 24) and found.tobytes() == wanted.tobytes()


def test_crops_fill_the_range_of_areas_and_ratios(monkeypatch):
    boxes = []
    monkeypatch.setattr(transforms, "_resize", lambda image, size: boxes.append(image.size))
    image, rng = scene(1, 100, 100), generator(0)
    for _ in range(2000):
        random_resized_crop(image, 8, (0.25, 0.5), rng=rng)
    areas = np.array([w * h for w, h in boxes]) / 1e4
    ratios = np.log([w / h for w, h in boxes])
    assert 0.24 < areas.min() < 0.26 and 0.49 < areas.max() < 0.51
    assert abs(areas.mean() - 0.375) < 0.01 and abs(ratios.mean()) < 0.02
    assert abs(abs(ratios).max() - math.log(4 / 3)) < 0.03


def test_height_and_width_may_differ():
    assert random_resized_crop(scene(1), (10, 20), rng=generator(0)).size == (20, 10)


@pytest.mark.parametrize(("shape", "size"), [((96, 64), 32), ((40, 100), 17), ((33, 33), 64)])
def test_the_middle_is_resized_as_torch_does_it(shape, size):
    image = scene(7, *shape).point(lambda value: 64 + value // 2)  # Pillow clips between its passes
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    short = min(shape)
    target = int(size * shape[1] / short), int(size * shape[0] / short)
    resized = torch.nn.functional.interpolate(pixels, target, mode="bicubic", antialias=True)
    top, left = round((target[0] - size) / 2), round((target[1] - size) / 2)
    wanted = resized[0, :, top : top + size, left : left + size].clamp(0, 255)
    found = torch.from_numpy(np.array(resize_and_center_crop(image, size))).permute(2, 0, 1).float()
    assert found.shape == (3, size, size)
    assert (found - wanted).abs().max() <= 1.01


def test_the_middle_of_a_very_long_image_takes_no_more_memory_than_that_of_another():
    """Whole, it would be resized to 4 x 10^9 pixels."""
    long = Image.new("RGB", (4, 250_000), "white")
    long.paste("red", (0, 124_996, 4, 125_004))
    for image in (long, long.transpose(Image.Transpose.ROTATE_90)):
        found = np.asarray(resize_and_center_crop(image, 256))
        assert found.shape == (256, 256, 3)
        assert (found == (255, 0, 0)).all()


def test_an_image_of_the_right_size_is_left_alone():
    assert resize_and_center_crop(scene(2, 32, 32), 32).tobytes() == scene(2, 32, 32).tobytes()


def test_flips_are_as_frequent_as_asked():
    image, rng = scene(6), generator(0)
    mirrored = np.asarray(image)[:, ::-1].tobytes()
    assert random_flip(image, 0.0, rng=rng) is image
    assert random_flip(image, 1.0, rng=rng).tobytes() == mirrored
    share = np.mean([random_flip(image, 0.3, rng=rng).tobytes() == mirrored for _ in range(1000)])
    assert abs(share - 0.3) < 0.05


def test_jitter_is_off_by_default_and_bounded():
    image = scene(8)
    assert color_jitter(image, rng=generator(0)) is image
    gray = Image.new("RGB", (2, 2), (100, 100, 100))
    found = [color_jitter(gray, 0.4, rng=generator(s)).getpixel((0, 0))[0] for s in range(200)]
    assert 59 <= min(found) < 65 and 135 < max(found) <= 140
    colored = Image.new("RGB", (2, 2), (200, 40, 90))
    unsaturated = color_jitter(colored, saturation=1.0, rng=generator(4))
    assert np.ptp(np.asarray(unsaturated)[0, 0].astype(int)) != 160


def test_hue_turns_and_nothing_else():
    colored = Image.new("RGB", (2, 2), (200, 40, 90))
    before = colorsys.rgb_to_hsv(200, 40, 90)
    turns = []
    for seed in range(40):
        pixel = color_jitter(colored, hue=0.25, rng=generator(seed)).getpixel((0, 0))
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        assert abs(saturation - before[1]) < 0.03 and abs(value - before[2]) < 4
        turns.append((hue - before[0] + 0.5) % 1 - 0.5)
    assert -0.26 < min(turns) < -0.15 and 0.15 < max(turns) < 0.26


def test_the_same_generator_gives_the_same_view():
    image = scene(9)
    views = [
        color_jitter(
            random_flip(random_resized_crop(image, 16, (0.2, 1), rng=rng), 0.5, rng=rng),
            *(0.4, 0.4, 0.4, 0.1),
            rng=rng,
        ).tobytes()
        for seed in (1, 1, 2)
        for rng in [generator(seed)]
    ]
    assert views[0] == views[1] != views[2]
