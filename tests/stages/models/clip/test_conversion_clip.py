"""Both directions between CLIP folders and `transformers`, in float32 to 1e-5."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import RESNET, TEXT, VIT, captions, images, lively, made, write_tokenizer
from transformers import CLIPConfig as TheirConfig
from transformers import CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipeline.errors import InputError
from stages.contrastive.pair_dataset import normalize_pixels
from stages.images.transforms import resize_and_center_crop
from stages.models.clip.configuration_clip import TextConfig
from stages.models.clip.conversion_clip import load_clip, save_clip
from stages.models.clip.modeling_clip import CLIP
from stages.models.clip.vit import split_patches


def their_features(model, pixels, tokens_BT):
    found = model(input_ids=tokens_BT, pixel_values=pixels)
    return found.image_embeds, found.text_embeds, found.logits_per_image


def symmetric(logits_BB):
    own_B = torch.arange(len(logits_BB))
    both = (torch.nn.functional.cross_entropy(x, own_B) for x in (logits_BB, logits_BB.T))
    return sum(both) / 2


def ours_named_as_theirs(model):
    """Their name of each gradient of ours, through a model that has gradients for weights."""
    from stages.models.clip.conversion_clip import weight_table
    from stages.models.weight_table import export_weights

    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return export_weights(grads, weight_table(model.config))


def assert_same(ours, theirs):
    pixels, tokens_BT = images(ours.config), captions()
    image_BE, text_BE, scale, _ = ours(pixels, tokens_BT)
    expected = their_features(theirs, pixels, tokens_BT)
    logits_BB = scale * image_BE @ text_BE.T
    for mine, other in zip((image_BE, text_BE), expected[:2], strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits_BB, expected[2], rtol=1e-5, atol=1e-4)
    symmetric(logits_BB).backward()
    symmetric(expected[2]).backward()
    reference = {name: p.grad for name, p in theirs.named_parameters()}
    found = ours_named_as_theirs(ours)
    assert set(found) == set(reference)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, reference[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [VIT, replace(VIT, activation="gelu", norm_eps=1e-3)])
def test_ours_loads_in_transformers_with_the_same_embeddings_and_gradients(tmp_path, config):
    model = lively(made(config))
    save_clip(model, tmp_path)
    theirs = CLIPModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert_same(model, theirs)


def their_model(**text):
    config = TheirConfig(
        text_config={
            "vocab_size": 61, "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 12, "bos_token_id": 2,
            "eos_token_id": 3, "pad_token_id": 0, **text,
        },
        vision_config={
            "hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "image_size": 24,
            "num_attention_heads": 4, "patch_size": 8,
        },
        projection_dim=20,
    )  # fmt: skip
    torch.manual_seed(0)
    return lively(CLIPModel(config))


def test_theirs_loads_in_ours_with_the_same_embeddings_and_gradients(tmp_path):
    theirs = their_model()
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(load_clip(tmp_path), theirs)


def test_the_oldest_folders_end_at_the_largest_id(tmp_path):
    theirs = their_model(eos_token_id=2)
    theirs.save_pretrained(tmp_path)
    tokens_BT = captions().where(captions() != 3, torch.tensor(60))
    ours = load_clip(tmp_path)
    expected = their_features(theirs, images(VIT), tokens_BT)[1]
    torch.testing.assert_close(ours.encode_text(tokens_BT), expected, rtol=0, atol=1e-5)
    text = ours.config.text
    assert (text.bos, text.eos) == (text.vocab_size - 2, text.vocab_size - 1), "as their tokenizer"


def test_towers_that_differ_are_refused(tmp_path):
    their_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["hidden_act"] = "gelu"
    config["vision_config"]["hidden_act"] = "quick_gelu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="towers differ in hidden_act"):
        load_clip(tmp_path)


@pytest.mark.parametrize("config", [VIT, RESNET, replace(VIT, bias=True)])
def test_what_was_saved_is_loaded(tmp_path, config):
    model = lively(made(config))
    save_clip(model, tmp_path)
    again = load_clip(tmp_path)
    assert again.config == config
    for one, other in zip(
        model(images(config), captions()), again(images(config), captions()), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_sigmoid_model_gives_transformers_the_same_embeddings(tmp_path):
    model = lively(made(replace(VIT, bias=True)))
    save_clip(model, tmp_path)
    theirs = CLIPModel.from_pretrained(tmp_path).eval()
    expected = their_features(theirs, images(VIT), captions())
    torch.testing.assert_close(model.encode_image(images(VIT)), expected[0], rtol=0, atol=1e-5)


def test_equal_weights_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        save_clip(made(VIT), tmp_path / name, card="# card")
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in "ab")
    assert a == b
    assert set(a) == {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}


def test_images_are_prepared_as_transformers_prepares_them(tmp_path):
    save_clip(made(VIT), tmp_path)
    theirs = CLIPImageProcessorPil.from_pretrained(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (40, 57, 3), np.uint8)
    picture = Image.fromarray(noise)
    expected = theirs(picture, return_tensors="pt")["pixel_values"][0]
    crop = np.asarray(resize_and_center_crop(picture, 24))
    (found,) = normalize_pixels([crop], torch.device("cpu"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_tokenizer_of_the_folder_marks_captions_as_training_did(tmp_path):
    from transformers import AutoTokenizer

    from stages.contrastive.caption_tokenizer import encode_captions, open_caption_tokenizer
    from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer

    texts = ["the cat sleeps", "the owl", "what does the saw do? " * 4]
    ours = write_tokenizer(tmp_path / "tokenizer", texts * 9, 310)
    shape = TextConfig(len(ours), 12, 1, 32, 2, eos=3, bos=2, pad=0)
    model = lively(CLIP(replace(VIT, text=shape)))
    save_clip(model, tmp_path / "clip", tmp_path / "tokenizer")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "clip")(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    )["input_ids"]
    assert torch.equal(encode_captions(ours, texts, shape, trim=False), theirs)
    assert type(open_caption_tokenizer(tmp_path / "clip")) is Tokenizer
    (tmp_path / "clip/tokenizer.model").unlink()
    foreign = open_caption_tokenizer(tmp_path / "clip")
    assert len(foreign) == len(ours)
    assert torch.equal(encode_captions(foreign, texts, shape, trim=False), theirs)
    assert encode_captions(ours, texts[:2], shape).shape[1] < 12
    reference = CLIPModel.from_pretrained(tmp_path / "clip").eval()
    torch.testing.assert_close(
        model.encode_text(encode_captions(ours, texts, shape)),
        their_features(reference, images(VIT), theirs)[1],
        rtol=0,
        atol=1e-5,
    )


def test_tokenizers_that_cannot_be_read_are_refused(tmp_path):
    from stages.contrastive.caption_tokenizer import open_caption_tokenizer

    with pytest.raises(InputError, match="the folder holds neither"):
        open_caption_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot read the tokenizer"):
        open_caption_tokenizer(tmp_path)


def edit(folder, key, **changes):
    config = json.loads((folder / "config.json").read_text())
    section = config if key is None else config[key]
    section.update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def test_folders_that_are_no_clip_are_refused(tmp_path):
    with pytest.raises(InputError, match="not a model folder"):
        load_clip(tmp_path / "nothing")
    save_clip(made(VIT), tmp_path)
    for key, change, message in (
        ("text_config", {"num_hidden_layers": 3}, "weights and config disagree"),
        ("text_config", {"num_hidden_layers": 1}, "no weight takes"),
        ("vision_config", {"hidden_act": "relu", "num_hidden_layers": 2}, "activation 'relu'"),
        ("vision_config", {"intermediate_size": 100}, "not four times as wide"),
        (None, {"model_type": "siglip"}, "models of type 'siglip' as CLIP"),
    ):
        edit(tmp_path, key, **change)
        with pytest.raises(InputError, match=message):
            load_clip(tmp_path)
    save_clip(made(VIT), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match="cannot read the weights"):
        load_clip(tmp_path)


def test_patches_are_read_as_a_convolution_reads_them():
    tower = made(VIT).visual
    weight = tower.patch.weight.view(-1, 3, 8, 8)
    by_conv = torch.nn.functional.conv2d(images(VIT), weight, stride=8).flatten(2).transpose(1, 2)
    torch.testing.assert_close(
        tower.patch(split_patches(images(VIT), 8)), by_conv, rtol=1e-4, atol=1e-5
    )


def test_marks_are_those_of_the_tokenizer():
    assert (TEXT.pad, TEXT.bos, TEXT.eos) == (0, 2, 3)
