"""Reward models of every decoder family, against the sequence classifiers of transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stages.data.tokenizers.tokenizer_training import (
    TokenizerConfig,
    export_tokenizer,
    train_sentencepiece,
)
from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.language_model import ForwardOutputs
from stages.models.language_model_config import ExpertsConfig, LanguageModelConfig
from stages.models.llama.configuration_llama import LlamaConfig
from stages.models.model_io import load_reward_model, save_reward_model
from stages.models.registry import build_model, find_family
from stages.models.reward_head import RewardModel
from stages.models.smoke_test import check

LLAMA = LlamaConfig(
    97, 32, 2, 48, 4, num_kv_heads=2, intermediate_size=64, head_size=12, tie_embeddings=False
)
QWEN3 = replace(LLAMA, qk_norm=True, head_size=16)
FAMILIES: dict[str, LanguageModelConfig] = {
    "gpt2": GPTConfig(97, 32, 2, 48, 4),
    "llama": LLAMA,
    "qwen3": QWEN3,
    "switch": replace(
        QWEN3, experts=ExpertsConfig(num_experts=4, moe_every=2, capacity_factor=None)
    ),
}
CLASSES = {
    "gpt2": "GPT2ForSequenceClassification",
    "llama": "LlamaForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
    "switch": "Qwen3MoeForSequenceClassification",
}


def reward_model(family: str) -> RewardModel:
    torch.manual_seed(0)
    model = RewardModel(build_model(FAMILIES[family])).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name or name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.mul_(3)
    return model


@pytest.fixture
def tokens_BT() -> Tensor:
    return torch.randint(4, 97, (3, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_logits_of_transformers(
    family: str, tmp_path: Path, tokens_BT: Tensor
) -> None:
    assert "scalar_head" in find_family(FAMILIES[family]).capabilities
    model = reward_model(family)
    save_reward_model(model, tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(theirs).__name__ == CLASSES[family]
    tokens_BT[1, 12:] = 0  # padding
    last_B = (tokens_BT != 0).sum(1) - 1
    with torch.no_grad():
        expected_B = theirs(tokens_BT, attention_mask=(tokens_BT != 0).long()).logits[:, 0]
        ours_BT = model(tokens_BT)
        loaded_BT = load_reward_model(tmp_path)(tokens_BT)
    assert ours_BT.std() > 0.1
    torch.testing.assert_close(ours_BT[torch.arange(3), last_B], expected_B, rtol=0, atol=1e-5)
    torch.testing.assert_close(loaded_BT, ours_BT, rtol=0, atol=0)
    assert check(tmp_path).startswith(CLASSES[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_of_transformers_loads(family: str, tmp_path: Path, tokens_BT: Tensor) -> None:
    """Their folder, written by them, gives our scores."""
    save_reward_model(reward_model(family), tmp_path / "ours")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        expected_B = theirs(tokens_BT).logits[:, 0]
        found_BT = load_reward_model(tmp_path / "theirs")(tokens_BT)
    torch.testing.assert_close(found_BT[:, -1], expected_B, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bias_shifts_every_score_and_is_saved(
    family: str, tmp_path: Path, tokens_BT: Tensor
) -> None:
    model = reward_model(family)
    before_BT = model(tokens_BT).detach()
    model.add_bias(-2.5)
    save_reward_model(model, tmp_path)
    loaded_BT = load_reward_model(tmp_path)(tokens_BT)
    torch.testing.assert_close(loaded_BT, before_BT - 2.5, rtol=0, atol=1e-5)
    config = json.loads((tmp_path / "config.json").read_text())
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    expected_B = theirs(tokens_BT).logits[:, 0] + config.get("score_bias", 0.0)
    torch.testing.assert_close(expected_B, before_BT[:, -1] - 2.5, rtol=0, atol=1e-5)
    assert ("score_bias" in config) == (family != "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_transformers_scores_a_text_the_same_alone_and_in_a_batch(
    family: str, tmp_path: Path
) -> None:
    """With the tokenizer's own padding, and the bias that the card says to add."""
    texts = ["a", "a longer text with more words", "a text"]
    config = TokenizerConfig(whitespace_runs=2)
    sentencepiece = train_sentencepiece(texts * 50, 300, config)
    export_tokenizer(sentencepiece, tmp_path, config=config)
    torch.manual_seed(0)
    model = RewardModel(build_model(replace(FAMILIES[family], vocab_size=300))).eval()
    model.add_bias(1.5)
    out = tmp_path / "reward"
    save_reward_model(model, out, tmp_path, card="# Scores")
    tokenizer = AutoTokenizer.from_pretrained(out)
    theirs = AutoModelForSequenceClassification.from_pretrained(out).eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        together_B = theirs(**batch).logits[:, 0]
        alone = [theirs(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
        ours = [model(tokenizer(text, return_tensors="pt")["input_ids"])[0, -1:] for text in texts]
    torch.testing.assert_close(together_B, torch.cat(alone), rtol=0, atol=1e-5)
    bias = json.loads((out / "config.json").read_text()).get("score_bias", 0.0)
    torch.testing.assert_close(together_B + bias, torch.cat(ours), rtol=0, atol=1e-5)
    assert ("plus 1.5" in (out / "README.md").read_text()) == bool(bias)


def test_a_body_has_no_head_of_its_own() -> None:
    """An unused head would have no gradient."""
    model = reward_model("llama")
    assert model.body.config.tie_embeddings
    assert "body.lm_head.weight" not in model.state_dict()
    model(torch.ones(1, 4, dtype=torch.long)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_routing_is_reported_without_padding() -> None:
    model, outputs = reward_model("switch"), ForwardOutputs()
    tokens_BT = torch.ones(2, 6, dtype=torch.long)
    token_mask_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
    token_mask_BT[1, 3:] = False
    model(tokens_BT, token_mask_BT=token_mask_BT, outputs=outputs)
    assert len(outputs.routing) == 1
