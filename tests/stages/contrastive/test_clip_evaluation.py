"""Retrieval, zero-shot classification and the linear probe against brute force."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from peak_allocation import peak
from sklearn.linear_model import LogisticRegression
from tiny_clip import clip_world, pair, shape_of, write_tokenizer
from torch.nn import functional as F

from pipeline.errors import InputError
from stages.contrastive import retrieval
from stages.contrastive import zero_shot as zero_shot_module
from stages.contrastive.caption_tokenizer import encode_captions
from stages.contrastive.clip_evaluation import ClipEncoder, ClipEvalConfig, evaluate_clip
from stages.contrastive.linear_probe import L2_PENALTIES, evaluate_linear_probe, fit_logistic
from stages.contrastive.pair_dataset import center_crop, normalize_pixels, sample_indices
from stages.contrastive.retrieval import recall_at_k
from stages.contrastive.zero_shot import (
    classification_accuracy,
    evaluate_zero_shot,
    prompt_probabilities,
    read_classes,
)
from stages.data.image_text_dataset import ImageTextStore
from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
from stages.models.clip.conversion_clip import load_clip, save_clip
from stages.models.clip.modeling_clip import CLIP
from stages.objectives.contrastive import ContrastiveObjective
from stages.training.ranks.rank import Rank


def unit(rows, seed, dimensions=8):
    drawn = torch.randn(rows, dimensions, generator=torch.Generator().manual_seed(seed))
    return F.normalize(drawn.double(), dim=1)


@pytest.mark.parametrize(
    "cells", [retrieval.BLOCK_SIMILARITIES, 50 * 7, 1], ids=["one", "several", "rows"]
)
def test_recalls_are_those_of_sorted_lists(monkeypatch, cells):
    """Use images with one to three captions, and one caption of two images, in blocks of all
    queries, of some, of one."""
    monkeypatch.setattr(retrieval, "BLOCK_SIMILARITIES", cells)
    image_NE, text_ME = unit(30, 0), unit(50, 1)
    rng = np.random.default_rng(2)
    owned = [set(rng.choice(49, rng.integers(1, 4), replace=False).tolist()) for _ in range(30)]
    owned[3] |= {7}
    owned[4] |= {7}
    texts = [f"caption {m}" for m in range(50)]
    found = recall_at_k(image_NE, text_ME, [[texts[m] for m in own] for own in owned], texts)
    for k in (1, 5, 10):
        hits = 0
        for n, own in enumerate(owned):
            near = sorted(range(50), key=lambda m: -float(image_NE[n] @ text_ME[m]))[:k]
            hits += bool(own & set(near))
        assert found[f"image_to_text_r{k}"] == pytest.approx(hits / 30)
        asked = [m for m in range(50) if any(m in own for own in owned)]
        hits = 0
        for m in asked:
            near = sorted(range(30), key=lambda n: -float(image_NE[n] @ text_ME[m]))[:k]
            hits += any(m in owned[n] for n in near)
        assert found[f"text_to_image_r{k}"] == pytest.approx(hits / len(asked))


@pytest.mark.parametrize("cells", [retrieval.BLOCK_SIMILARITIES, 60, 1])
def test_a_model_with_constant_embeddings_finds_nothing(monkeypatch, cells):
    monkeypatch.setattr(retrieval, "BLOCK_SIMILARITIES", cells)
    same, texts = torch.ones(20, 4) / 2, [str(m) for m in range(20)]
    assert set(recall_at_k(same, same, [[text] for text in texts], texts).values()) == {0.0}


@pytest.mark.parametrize("cells", [retrieval.BLOCK_SIMILARITIES, 700, 1])
def test_captions_that_are_alike_are_right_for_each_other(monkeypatch, cells):
    """Against one matrix of all; features of few small numbers, so that many are equally near."""
    monkeypatch.setattr(retrieval, "BLOCK_SIMILARITIES", cells)
    rng = np.random.default_rng(6)
    image_NE, text_NE = (torch.from_numpy(rng.integers(-1, 2, (200, 4))).float() for _ in "it")
    names = [f"caption {number}" for number in rng.integers(0, 60, 200)]
    truth = np.array([[a == b for b in names] for a in names])
    cosines = (image_NE @ text_NE.T).numpy()
    found = recall_at_k(image_NE, text_NE, [[name] for name in names], names)
    for side, near, right in (
        ("image_to_text", cosines, truth),
        ("text_to_image", cosines.T, truth.T),
    ):
        best = np.where(right, near, -np.inf).max(1)
        before = ((near >= best[:, None]) & ~right).sum(1)
        for k in (1, 5, 10):
            assert found[f"{side}_r{k}"] == pytest.approx((before < k).mean())
    assert 0 < found["image_to_text_r1"] < found["image_to_text_r10"] < 1


def test_recalls_hold_a_block_at_a_time(monkeypatch):
    """Compare with all pairs at once: 9 MiB of similarities."""
    image_NE, text_ME = unit(1000, 0).float(), unit(2400, 1).float()
    texts = [str(m) for m in range(2400)]
    held = [texts[2 * n : 2 * n + 2] for n in range(1000)]
    whole = peak(lambda: recall_at_k(image_NE, text_ME, held, texts))
    monkeypatch.setattr(retrieval, "BLOCK_SIMILARITIES", 1 << 16)
    assert peak(lambda: recall_at_k(image_NE, text_ME, held, texts)) < 1 << 20 < 9 << 20 < whole


def write_classes(folder, **changes):
    result = {
        "templates": ["{}", "a picture of a {}"],
        "classes": ["red", {"name": "green", "words": ["green", "lime"]}, "blue", "black"],
    }
    path = folder / "classes.json"
    path.write_text(json.dumps({**result, **changes}))
    return path


def test_an_ensemble_is_the_mean_of_prompts_or_of_their_probabilities(tmp_path, monkeypatch):
    classes = read_classes(write_classes(tmp_path), "colour")
    table = {}

    def encode_texts(texts):
        for text in texts:
            table.setdefault(text, unit(1, 100 + len(table))[0])
        return torch.stack([table[text] for text in texts])

    image_NE = unit(40, 5)
    labels = [classes.names[i % 4] for i in range(40)]
    ensemble, single = evaluate_zero_shot(image_NE, labels, classes, encode_texts)
    assert len(table) == 10
    centres = {
        "red": ["red", "a picture of a red"],
        "green": ["green", "lime", "a picture of a green", "a picture of a lime"],
        "blue": ["blue", "a picture of a blue"],
        "black": ["black", "a picture of a black"],
    }

    def accuracy(prompts):
        right = 0
        for image, label in zip(image_NE, labels, strict=True):
            cosines = {}
            for name, texts in prompts.items():
                mean = sum(table[text] for text in texts) / len(texts)
                cosines[name] = float(image @ mean) / float(mean.norm())
            right += max(cosines, key=cosines.get) == label
        return right / len(labels)

    assert ensemble.accuracy == pytest.approx(accuracy(centres))
    alone = {name: [f"a picture of a {name}"] for name in classes.names}
    assert single["a picture of a {}"].accuracy == pytest.approx(accuracy(alone))
    assert ensemble.balanced_accuracy == pytest.approx(ensemble.accuracy), "ten of each"
    rare = classification_accuracy(torch.zeros(5, 4), labels[:5], classes.names)
    assert set(rare.per_class) == set(classes.names)

    prompts = list(table)
    chances = []
    for image in image_NE:
        odds = {prompt: float((9 * image @ table[prompt]).exp()) for prompt in prompts}
        parts = [sum(odds[t] for t in texts) / len(texts) for texts in centres.values()]
        chances.append([part / sum(odds.values()) for part in parts])
    asked = [centres[name] for name in classes.names]
    monkeypatch.setattr(zero_shot_module, "BLOCK_ELEMENTS", 70)
    found_NC = prompt_probabilities(image_NE, asked, encode_texts, 9)
    torch.testing.assert_close(found_NC, torch.tensor(chances, dtype=torch.double))
    result, _ = evaluate_zero_shot(image_NE, labels, classes, encode_texts, scale=9)
    assert result == classification_accuracy(found_NC, labels, classes.names)
    assert result.accuracy != ensemble.accuracy


def test_a_list_under_the_labels_name_will_do(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"templates": ["{}"], "shape": ["disc", "square"]}))
    assert read_classes(path, "shape").names == ("disc", "square")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"templates": ["a photo"]}, "is not a list of texts with {}"),
        ({"classes": ["red"]}, "is a list of classes"),
        ({"classes": ["red", {"words": ["green"]}]}, "not a class"),
        ({"classes": ["red", "red"]}, "listed twice"),
    ],
)
def test_files_in_another_format_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read_classes(write_classes(tmp_path, **changes), "colour")


def test_unreadable_classes_and_unknown_labels_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot read the classes"):
        read_classes(tmp_path / "none.json", "colour")
    with pytest.raises(InputError, match="1 labels are not classes: pink"):
        classification_accuracy(unit(2, 0), ["red", "pink"], ["red", "blue"])


@pytest.mark.parametrize("l2", [0.01, 1.0])
def test_logistic_regression_is_that_of_scikit_learn(l2):
    x_NE = 3 * unit(120, 7)
    class_N = (x_NE[:, :3] + 0.7 * unit(120, 8)[:, :3]).argmax(1)
    reference = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=5000).fit(
        x_NE.numpy(), class_N.numpy()
    )
    found = fit_logistic(x_NE, class_N, 3, l2)
    torch.testing.assert_close(
        found.weight, torch.from_numpy(reference.coef_), rtol=1e-3, atol=1e-4
    )
    fresh = 3 * unit(200, 9)
    assert (found.predict(fresh).numpy() == reference.predict(fresh.numpy())).mean() > 0.99


def test_the_probe_takes_the_strength_that_does_best_on_every_fifth_row():
    x_NE, noise_N = 4 * unit(150, 11, 60), 4 * unit(150, 12, 60)[:, 0]
    labels = ["up" if x > 0 else "down" for x in x_NE[:, 0] + 0.5 * noise_N]
    class_N = torch.tensor([label == "up" for label in labels]).long()
    held_N = torch.arange(100) % 5 == 4
    kept = x_NE[:100][~held_N], class_N[:100][~held_N]
    scored = {
        l2: fit_logistic(*kept, 2, l2, steps=200).accuracy(
            x_NE[:100][held_N], class_N[:100][held_N]
        )
        for l2 in L2_PENALTIES
    }
    assert len(set(scored.values())) > 1
    accuracy, l2 = evaluate_linear_probe(x_NE[:100], labels[:100], x_NE[100:], labels[100:])
    assert scored[l2] == max(scored.values())
    assert accuracy > 0.6


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = clip_world(tmp_path_factory.mktemp("clips"))
    torch.manual_seed(0)
    save_clip(CLIP(shape_of(made)), made / "model", made / "tokenizer")
    return made


def test_a_folder_is_measured_as_by_hand(world, tmp_path):
    asked = ClipEvalConfig(
        "first", write_classes(tmp_path), "colour", limit=20, batch_size=7, seed=4
    )
    found = evaluate_clip(Rank(), world / "model", world / "pairs", asked)
    model, tokenizer = load_clip(world / "model"), Tokenizer(world / "tokenizer")
    store = ImageTextStore(world / "pairs", "eval")
    rows = sample_indices(len(store), 20, 4)
    pixels = normalize_pixels([center_crop(store[row], 24) for row in rows], torch.device("cpu"))
    captions = list(dict.fromkeys(store[row].captions[0] for row in rows))
    with torch.no_grad():
        image_NE = model.encode_image(pixels)
        text_ME = model.encode_text(encode_captions(tokenizer, captions, model.config.text))
    used = [store[row].captions[:1] for row in rows]
    for name, value in recall_at_k(image_NE, text_ME, used, captions).items():
        assert found.metrics[name] == pytest.approx(value)
    assert (found.metrics["images"], found.metrics["texts"]) == (20, len(captions))
    assert found.metrics["chance"] == 0.25
    assert {"zero_shot", "zero_shot_single", "linear_probe"} <= set(found.metrics)
    assert found.metrics["linear_probe"] > 0.5, "even untrained features tell colours"
    titles = [panel["title"] for panel in found.panels]
    assert titles[0] == f"Recall among 20 images, {len(captions)} texts"


def test_an_initial_model_takes_its_own_tokenizer_alone(world, tmp_path):
    """Refuse a tokenizer of the same size, which would encode captions as other words."""
    lines = [caption[::-1] for i in range(16) for caption in pair(i, 1).captions]
    other = write_tokenizer(tmp_path / "other", lines * 3, 330)
    config, base = shape_of(world), world / "model"
    assert len(other) == config.text.vocab_size
    for same in (base, world / "tokenizer"):
        ContrastiveObjective(world / "pairs", same, config, init_from=base)._open_tokenizer()
    ContrastiveObjective(world / "pairs", other.path, config)._open_tokenizer()
    wrong = ContrastiveObjective(world / "pairs", other.path, config, init_from=base)
    with pytest.raises(
        InputError, match=r"differs from that of .* \(same size, other vocabulary\)"
    ):
        wrong._open_tokenizer()


def test_a_limit_draws_at_random_and_none_takes_all():
    few = sample_indices(1000, 100, 3)
    assert len(set(few)) == 100
    assert few == sample_indices(1000, 100, 3) != sample_indices(1000, 100, 4)
    assert 35 < sum(row < 500 for row in few) < 65, "of both ends of what is stored"
    assert sorted(sample_indices(7, 0, 3)) == sorted(sample_indices(7, 99, 3)) == list(range(7))
    assert sample_indices(0, 5, 3) == []


def test_images_are_read_a_batch_at_a_time(world):
    reads, seen = [], []

    class Counted(list):
        def __getitem__(self, row):
            reads.append(row)
            return super().__getitem__(row)

    model = load_clip(world / "model")
    tokenizer = Tokenizer(world / "tokenizer")
    encoder = ClipEncoder(model, tokenizer, Rank(), 4, lambda: seen.append(len(reads)))
    store = Counted(ImageTextStore(world / "pairs", "eval"))
    made = encoder.encode_images_on_all_ranks(store, range(10))
    assert seen == [4, 8, 10]
    assert made.shape == (10, model.config.embed_dim)


def test_what_cannot_be_measured_is_said(world, tmp_path):
    with pytest.raises(InputError, match="no text field `taste`"):
        asked = ClipEvalConfig(label_field="taste")
        evaluate_clip(Rank(), world / "model", world / "pairs", asked)
    from tiny_clip import write_pairs

    with pytest.raises(InputError, match="the eval split is empty"):
        evaluate_clip(Rank(), world / "model", write_pairs(tmp_path, 4, 0), ClipEvalConfig())
