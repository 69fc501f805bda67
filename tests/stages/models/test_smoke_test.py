"""A folder that works, and folders that do not."""

import json

import pytest
import torch
from tiny_clip import RESNET, VIT, made

from stages.models.clip.conversion_clip import save_clip
from stages.models.model_io import load_language_model, save_language_model
from stages.models.smoke_test import check, main


def test_folders_that_work(world, scorer, capsys):
    assert main([str(world / "policy")]) == 0
    assert capsys.readouterr().out.startswith("GPT2LMHeadModel generates ")
    assert check(scorer).startswith("GPT2ForSequenceClassification scores ")


@pytest.mark.parametrize(("config", "name"), [(VIT, "CLIPModel"), (RESNET, "CLIP")])
def test_clips_that_work_and_do_not(tmp_path, config, name):
    model = made(config)
    save_clip(model, tmp_path)
    assert check(tmp_path).startswith(f"{name} compares: cosine ")
    torch.nn.init.constant_(model.text.ln_final.bias, float("nan"))
    save_clip(model, tmp_path)
    with pytest.raises(ValueError, match="not finite"):
        check(tmp_path)


def test_a_folder_without_a_model(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().err


def test_weights_that_are_not_finite(world, tmp_path, capsys):
    model = load_language_model(world / "policy")
    torch.nn.init.constant_(model.ln_f.bias, float("nan"))
    save_language_model(model, tmp_path, world / "tokenizer")
    assert main([str(tmp_path)]) == 1
    assert "the output is not finite" in capsys.readouterr().err


def test_weights_that_do_not_fit_the_config(world, tmp_path, capsys):
    save_language_model(load_language_model(world / "policy"), tmp_path, world / "tokenizer")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_embd": 32}))
    assert main([str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_it_takes_one_folder(arguments, capsys):
    assert main(arguments) == 2
    assert "usage" in capsys.readouterr().err
