"""Views are functions of (seed, number); no step holds a pair twice; threads change nothing."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_clip import clip_world, shape_of

from pipeline.errors import InputError
from stages.contrastive.pair_dataset import Ahead, Augmentation, Views, collate, middle, to_pixels
from stages.data.image_text_dataset import ImageTextStore, Sample
from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
from stages.images.transforms import center, to_tensor


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return clip_world(tmp_path_factory.mktemp("clips"), train=21)


@pytest.fixture
def views(world):
    text = shape_of(world).text
    changes = Augmentation((0.5, 1.0), flip=0.5, jitter=(0.3, 0.3, 0.3, 0.1), gray=0.3)
    tokenizer = Tokenizer(world / "tokenizer")
    return Views(ImageTextStore(world / "pairs"), tokenizer, text, 24, changes, 5, 8)


def test_a_view_is_a_function_of_its_number(views):
    for number in (0, 7, 100):
        one, again = views[number], views[number]
        assert np.array_equal(one.pixels, again.pixels) and one.ids == again.ids
    other = replace(views, seed=6)
    assert any(not np.array_equal(views[n].pixels, other[n].pixels) for n in range(5))


def test_no_step_holds_a_pair_twice_and_what_is_left_over_changes(views):
    assert views.steps_per_epoch == 2
    from stages.training.data_order import Shuffled, mix

    order = Shuffled(range(21), mix(5, 1))
    missed = []
    for epoch in range(4):
        seen = []
        for step in (2 * epoch, 2 * epoch + 1):
            pairs = [order[views._place(8 * step + i)] for i in range(8)]
            assert len(set(pairs)) == 8
            seen += pairs
        assert len(set(seen)) == 16, "an epoch reads each pair at most once"
        missed.append(frozenset(set(range(21)) - set(seen)))
    assert len(set(missed)) > 1


def test_every_caption_is_read_or_the_first_alone(views):
    texts = {views.tokenizer.decode(views[n].ids) for n in range(64)}
    assert any(t.startswith("a picture of") for t in texts) and any("," in t for t in texts)
    first = replace(views, any_caption=False)
    assert all(
        views.tokenizer.decode(first[n].ids).startswith(("a red", "a green", "a blue", "a black"))
        for n in range(32)
    )
    assert all(view.ids[0] == 2 and view.ids[-1] == 3 for view in map(views.__getitem__, range(9)))


def test_colours_are_dropped_as_often_as_told(world, views):
    gray = replace(views, augmentation=Augmentation(gray=1.0))
    pixels = gray[3].pixels
    assert np.array_equal(pixels[..., 0], pixels[..., 1])


def test_pixels_are_normalised_as_everybody_does(world):
    sample = ImageTextStore(world / "pairs", "eval")[0]
    from stages.data.image_text_dataset import decode_rgb

    expected = to_tensor(center(decode_rgb(sample.image), 24))
    torch.testing.assert_close(
        to_pixels([middle(sample, 24)], torch.device("cpu"))[0], expected, rtol=1e-6, atol=1e-6
    )


def test_hidden_patches_belong_to_the_pair_and_change_nothing_else(views):
    hiding = replace(views, patches=9, kept=6)
    for number in (0, 7, 100):
        plain, one, again = views[number], hiding[number], hiding[number]
        assert plain.places is None
        assert np.array_equal(one.places, again.places)
        assert len(set(one.places.tolist())) == 6 and set(one.places.tolist()) <= set(range(9))
        assert np.array_equal(one.pixels, plain.pixels) and one.ids == plain.ids
    batch = collate([hiding[n] for n in range(8)], views.text, torch.device("cpu"))
    assert batch["places"].shape == (8, 6)
    assert len({tuple(row) for row in batch["places"].tolist()}) > 1, "drawn anew for each pair"


def test_captions_are_padded_to_the_longest(views):
    batch = collate([views[n] for n in range(6)], views.text, torch.device("cpu"))
    longest = max(len(views[n].ids) for n in range(6))
    assert batch["tokens"].shape == (6, -(-longest // 4) * 4)
    assert batch["pixels"].shape == (6, 3, 24, 24)


def test_an_unreadable_image_is_named(world):
    with pytest.raises(InputError, match="image of broken cannot be read"):
        middle(Sample("broken", b"\x89PNG\r\n\x1a\nnothing", ("a",), {}), 24)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_give_steps_in_any_order_of_asking(threads):
    def make(number):
        time.sleep(0.001 * (number % 3))
        return number * number

    ahead = Ahead(make, lambda step: range(10 * step, 10 * step + 10), threads=threads)
    for step in (0, 1, 2, 7, 8, 3):
        assert ahead.take(step) == [n * n for n in range(10 * step, 10 * step + 10)]
        assert all(step < known <= step + 2 for known in ahead._coming)


def test_what_goes_wrong_in_a_thread_is_raised_where_it_is_wanted():
    ahead = Ahead(
        lambda number: 1 // (number - 25), lambda s: range(10 * s, 10 * s + 10), threads=1
    )
    assert len(ahead.take(0)) == len(ahead.take(1)) == 10
    with pytest.raises(ZeroDivisionError):
        ahead.take(2)
