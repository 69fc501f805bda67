"""A model from elsewhere becomes an artifact that everything else takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from pipeline.context import Context
from pipeline.errors import InputError
from pipeline.stage import Inputs
from stages.models.huggingface import load_language_model, special_ids
from stages.pretrained import PretrainedParams, pretrained


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "Qwen3-mini"
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, intermediate_size=48, max_position_embeddings=32,
        eos_token_id=7, bos_token_id=5, pad_token_id=1,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "merges.txt").write_text("a b")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    return folder


def bring_in(folder: Path, tmp_path: Path) -> Path:
    ctx = Context.local(tmp_path / "w")
    pretrained(PretrainedParams(path=str(folder)), Inputs({}), ctx.out, ctx)
    return ctx.out


def test_weights_config_and_tokenizer_come_along(elsewhere: Path, tmp_path: Path) -> None:
    out = bring_in(elsewhere, tmp_path)
    theirs = Qwen3ForCausalLM.from_pretrained(elsewhere).eval()
    tokens = torch.randint(8, 64, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(load_language_model(out)(tokens), theirs(tokens).logits)
        again = Qwen3ForCausalLM.from_pretrained(out).eval()
        torch.testing.assert_close(again(tokens).logits, theirs(tokens).logits)
    assert special_ids(out) == (1, 5, 7)
    assert (out / "tokenizer.json").read_text() == "{}"
    assert (out / "merges.txt").exists()
    assert not (out / "pytorch_model.bin").exists()


def test_identity_is_the_content_and_no_pickle(elsewhere: Path) -> None:
    params = PretrainedParams(path=str(elsewhere))
    first = params.externals()
    assert "model.safetensors" in first and "pytorch_model.bin" not in first
    (elsewhere / "x.json").symlink_to("/etc/hostname")
    assert params.externals() == first, "a link out of the folder is not followed"
    (elsewhere / "merges.txt").write_text("b c")
    assert params.externals() != first
    hub = PretrainedParams(path="openai-community/gpt2", revision="abc")
    assert hub.externals() == {"hub": "openai-community/gpt2@abc"}


def test_what_is_no_model_is_refused(elsewhere: Path, tmp_path: Path) -> None:
    cached = tmp_path / "snapshot"
    cached.mkdir()
    for path in elsewhere.iterdir():
        (cached / path.name).symlink_to(path)
    with pytest.raises(InputError, match="links out of the folder"):
        PretrainedParams(path=str(cached)).externals()
    with pytest.raises(InputError, match="no such folder"):
        PretrainedParams(path=str(tmp_path / "nothing")).externals()
    config = json.loads((elsewhere / "config.json").read_text())
    (elsewhere / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    with pytest.raises(InputError, match="models of type 'mamba'"):
        bring_in(elsewhere, tmp_path)
