"""Pairs are functions of (seed, number); no step holds a pair twice; threads change nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_clip import clip_world, shape_of

from pipeline.errors import InputError
from stages.contrastive.augmentation import Augmentation
from stages.contrastive.pair_dataset import PairDataset, center_crop, collate, normalize_pixels
from stages.data.image_text_dataset import ImageTextStore, Sample
from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
from stages.images.transforms import resize_and_center_crop
from stages.models.clip.configuration_clip import CLIP_MEAN, CLIP_STD


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return clip_world(tmp_path_factory.mktemp("clips"), train=21)


@pytest.fixture
def views(world):
    text = shape_of(world).text
    changes = Augmentation(
        (0.5, 1.0), flip_prob=0.5, color_jitter=(0.3, 0.3, 0.3, 0.1), gray_scale_prob=0.3
    )
    tokenizer = Tokenizer(world / "tokenizer")
    return PairDataset(ImageTextStore(world / "pairs"), tokenizer, text, 24, changes, 5, 8)


def test_a_view_is_a_function_of_its_number(views):
    for number in (0, 7, 100):
        one, again = views[number], views[number]
        assert np.array_equal(one.pixels, again.pixels) and one.ids == again.ids
    other = replace(views, seed=6)
    assert any(not np.array_equal(views[n].pixels, other[n].pixels) for n in range(5))


def test_no_step_holds_a_pair_twice_and_what_is_left_over_changes(views):
    assert views.steps_per_epoch == 2
    from stages.training.data_order import Shuffled, derive_seed

    order = Shuffled(range(21), derive_seed(5, 1))
    missed = []
    for epoch in range(4):
        seen = []
        for step in (2 * epoch, 2 * epoch + 1):
            pairs = [order[views._position(8 * step + i)] for i in range(8)]
            assert len(set(pairs)) == 8
            seen += pairs
        assert len(set(seen)) == 16, "an epoch reads each pair at most once"
        missed.append(frozenset(set(range(21)) - set(seen)))
    assert len(set(missed)) > 1


def test_every_caption_is_read_or_the_first_alone(views):
    texts = {views.tokenizer.decode(views[n].ids) for n in range(64)}
    assert any(t.startswith("a picture of") for t in texts) and any("," in t for t in texts)
    first = replace(views, random_caption=False)
    assert all(
        views.tokenizer.decode(first[n].ids).startswith(("a red", "a green", "a blue", "a black"))
        for n in range(32)
    )
    assert all(view.ids[0] == 2 and view.ids[-1] == 3 for view in map(views.__getitem__, range(9)))


def test_colours_are_dropped_with_the_given_probability(world, views):
    gray = replace(views, augmentation=Augmentation(gray_scale_prob=1.0))
    pixels = gray[3].pixels
    assert np.array_equal(pixels[..., 0], pixels[..., 1])


def test_pixels_are_normalized_by_mean_and_standard_deviation(world):
    sample = ImageTextStore(world / "pairs", "eval")[0]
    from stages.data.image_text_dataset import decode_rgb

    pixels = np.asarray(resize_and_center_crop(decode_rgb(sample.image), 24), np.float64) / 255
    expected = torch.tensor((pixels - CLIP_MEAN) / CLIP_STD).permute(2, 0, 1).float()
    other = np.zeros((24, 24, 3), np.uint8)
    found = normalize_pixels([other, center_crop(sample, 24)], torch.device("cpu"))
    assert found.shape == (2, 3, 24, 24) and found.is_contiguous()
    torch.testing.assert_close(found[1], expected, rtol=1e-6, atol=1e-6)


def test_hidden_patches_belong_to_the_pair_and_change_nothing_else(views):
    hiding = replace(views, patches=9, kept=6)
    for number in (0, 7, 100):
        plain, one, again = views[number], hiding[number], hiding[number]
        assert plain.kept_patches is None
        assert np.array_equal(one.kept_patches, again.kept_patches)
        assert len(set(one.kept_patches.tolist())) == 6 and set(one.kept_patches.tolist()) <= set(
            range(9)
        )
        assert np.array_equal(one.pixels, plain.pixels) and one.ids == plain.ids
    batch = collate([hiding[n] for n in range(8)], views.text, torch.device("cpu"))
    assert batch["kept_patches"].shape == (8, 6)
    assert len({tuple(row) for row in batch["kept_patches"].tolist()}) > 1, (
        "drawn anew for each pair"
    )


def test_captions_are_padded_to_the_longest(views):
    batch = collate([views[n] for n in range(6)], views.text, torch.device("cpu"))
    longest = max(len(views[n].ids) for n in range(6))
    assert batch["tokens"].shape == (6, -(-longest // 4) * 4)
    assert batch["pixels"].shape == (6, 3, 24, 24)


def test_an_unreadable_image_is_named(world):
    with pytest.raises(InputError, match="image of broken cannot be decoded"):
        center_crop(Sample("broken", b"\x89PNG\r\n\x1a\nnothing", ("a",), {}), 24)
