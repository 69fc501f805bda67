"""Both directions between our folders and `transformers`, in float32 to 1e-5."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from pipeline.errors import InputError
from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.gpt2.modeling_gpt2 import GPT
from stages.models.hf_io import is_chat, special_ids, write_weights
from stages.models.model_io import (
    load_language_model,
    load_reward_model,
    save_language_model,
    save_reward_model,
)
from stages.models.reward_head import RewardModel

CONFIG = GPTConfig(vocab_size=97, context_length=32, num_layers=3, hidden_size=48, num_heads=4)


@pytest.fixture
def tokens_BT():
    torch.manual_seed(0)
    return torch.randint(4, 97, (3, 20))


def lively(model):
    """Weights far from their start, so that biases, norms and every transpose matter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def loss_of(logits_BTV, tokens_BT):
    return torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()
    )


def assert_same_gradients(ours, theirs, tokens_BT):
    loss_of(ours(tokens_BT), tokens_BT).backward()
    loss_of(theirs(tokens_BT).logits, tokens_BT).backward()
    reference = {name.removeprefix("transformer."): p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        conv1d = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        expected = reference[name].t() if conv1d else reference[name]
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-5)


def test_ours_loads_in_transformers_with_the_same_logits_and_gradients(tmp_path, tokens_BT):
    model = lively(GPT(CONFIG))
    save_language_model(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(theirs) is GPT2LMHeadModel
    torch.testing.assert_close(model(tokens_BT), theirs(tokens_BT).logits, rtol=0, atol=1e-5)
    assert_same_gradients(model, theirs, tokens_BT)


def test_residual_dropout_is_that_of_transformers_apart_from_the_others(tmp_path, tokens_BT):
    save_language_model(lively(GPT(replace(CONFIG, residual_dropout=0.2))), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["attn_pdrop"] == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).train()
    ours = load_language_model(tmp_path, residual_dropout=0.2).train()
    torch.manual_seed(3)
    expected = theirs(tokens_BT).logits
    torch.manual_seed(3)
    torch.testing.assert_close(ours(tokens_BT), expected, rtol=0, atol=1e-5)
    assert (expected - theirs.eval()(tokens_BT).logits).abs().max() > 0.1
    apart = load_language_model(tmp_path, dropout=0.3, residual_dropout=0.0).train()
    assert [m.p for m in apart.modules() if isinstance(m, torch.nn.Dropout)] == [0.3] + [0.0] * 6
    assert apart.h[0].attn.dropout == 0.3


def test_theirs_loads_in_ours_with_the_same_logits_and_gradients(tmp_path, tokens_BT):
    config = GPT2Config(
        vocab_size=97, n_positions=32, n_embd=48, n_layer=3, n_head=4, n_inner=80,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    theirs = lively(GPT2LMHeadModel(config))
    theirs.save_pretrained(tmp_path)
    model = load_language_model(tmp_path)
    assert model.config.intermediate_size == 80
    torch.testing.assert_close(model(tokens_BT), theirs(tokens_BT).logits, rtol=0, atol=1e-5)
    assert_same_gradients(model, theirs, tokens_BT)


def test_sharded_folders_of_others_load(tmp_path, tokens_BT):
    config = GPT2Config(vocab_size=97, n_positions=32, n_embd=48, n_layer=3, n_head=4)
    theirs = lively(GPT2LMHeadModel(config))
    theirs.save_pretrained(tmp_path, max_shard_size="200KB")
    assert not (tmp_path / "model.safetensors").exists()
    torch.testing.assert_close(
        load_language_model(tmp_path)(tokens_BT), theirs(tokens_BT).logits, rtol=0, atol=1e-5
    )


def test_left_padding_agrees_with_transformers(tmp_path, tokens_BT):
    model = lively(GPT(CONFIG))
    save_language_model(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    mask_BT = torch.ones_like(tokens_BT)
    mask_BT[1, :5] = 0
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    expected = theirs(tokens_BT, attention_mask=mask_BT, position_ids=positions_BT).logits
    real = mask_BT.bool()
    torch.testing.assert_close(
        model(tokens_BT, mask_BT=mask_BT)[real], expected[real], rtol=0, atol=1e-5
    )


def test_scorer_agrees_with_sequence_classification(tmp_path, tokens_BT):
    model = lively(RewardModel(GPT(CONFIG)))
    save_reward_model(model, tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokens_BT[1, 12:] = 0
    last_B = (tokens_BT != 0).sum(1) - 1
    ours_B = model(tokens_BT)[torch.arange(3), last_B]
    torch.testing.assert_close(ours_B, theirs(tokens_BT).logits[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(load_reward_model(tmp_path)(tokens_BT), model(tokens_BT))


def test_a_shift_is_folded_into_the_folder(tmp_path, tokens_BT):
    model = lively(RewardModel(GPT(CONFIG)))
    before_BT = model(tokens_BT).detach()
    model.add_bias(-2.5)
    save_reward_model(model, tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(model(tokens_BT), before_BT - 2.5, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        theirs(tokens_BT).logits[:, 0], before_BT[:, -1] - 2.5, rtol=0, atol=1e-5
    )


def test_a_scorer_without_a_direction_cannot_be_shifted():
    model = RewardModel(GPT(CONFIG))
    torch.nn.init.zeros_(model.score.weight)
    with pytest.raises(ValueError, match="no direction"):
        model.add_bias(1.0)


def test_equal_weights_give_equal_bytes(tmp_path):
    model = GPT(CONFIG)
    for name in ("a", "b"):
        save_language_model(model, tmp_path / name, card="# card")
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in "ab")
    assert a == b
    assert set(a) == {"config.json", "generation_config.json", "model.safetensors", "README.md"}


def test_the_card_says_chat_and_the_tokenizer_travels(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/tokenizer.json").write_text("{}")
    save_language_model(GPT(CONFIG), tmp_path / "chat", tmp_path / "tokenizer", chat=True)
    save_language_model(GPT(CONFIG), tmp_path / "plain")
    assert is_chat(tmp_path / "chat") and not is_chat(tmp_path / "plain")
    assert (tmp_path / "chat/tokenizer.json").read_text() == "{}"
    assert special_ids(tmp_path / "chat") == (0, 2, 3)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_every_file_has_the_mode_that_the_umask_leaves(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_language_model(GPT(CONFIG), tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~umask) and "model.safetensors" in modes


def test_weights_are_the_bytes_of_the_safetensors_library(tmp_path):
    weights = {"b": torch.randn(3, 4).t(), "é": torch.ones(5), "a": torch.zeros(2).half()}
    write_weights(tmp_path, weights)
    plain = {name: weight.float().contiguous() for name, weight in weights.items()}
    assert (tmp_path / "model.safetensors").read_bytes() == save(plain, {"format": "pt"})


def test_several_eos_ids_count_by_the_first(tmp_path):
    save_language_model(GPT(CONFIG), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": [5, 6]}))
    assert special_ids(tmp_path).eos == 5


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_folders_that_are_no_gpt2_are_refused(tmp_path):
    with pytest.raises(InputError, match="not a model folder"):
        load_language_model(tmp_path / "nothing")
    save_language_model(GPT(CONFIG), tmp_path)
    with pytest.raises(InputError, match="no score head"):
        load_reward_model(tmp_path)
    edit(tmp_path, n_layer=4)
    with pytest.raises(InputError, match="weights and config disagree"):
        load_language_model(tmp_path)
    edit(tmp_path, activation_function="relu")
    with pytest.raises(InputError, match="unknown activation 'relu'"):
        load_language_model(tmp_path)
    edit(tmp_path, activation_function="gelu_new", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(InputError, match="scale_attn_by_inverse_layer_idx = True"):
        load_language_model(tmp_path)
    edit(tmp_path, scale_attn_by_inverse_layer_idx=False, n_head=7)
    with pytest.raises(InputError, match="not a multiple of 7 heads"):
        load_language_model(tmp_path)
    edit(tmp_path, model_type="bert")
    with pytest.raises(InputError, match="models of type 'bert'"):
        load_language_model(tmp_path)


def test_broken_weights_are_refused(tmp_path):
    save_language_model(GPT(CONFIG), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match="cannot read the weights"):
        load_language_model(tmp_path)


def test_an_index_leads_to_the_folders_own_safetensors_alone(tmp_path):
    """Nothing else is part of what a folder is known by."""
    save_language_model(GPT(CONFIG), tmp_path / "elsewhere")
    save_language_model(GPT(CONFIG), tmp_path / "model")
    (tmp_path / "model/model.bin").symlink_to(tmp_path / "elsewhere/model.safetensors")
    for name, said in (
        ("../elsewhere/model.safetensors", "not in the folder"),
        ("model.bin", "not a safetensors file"),
    ):
        named = {"weight_map": {"transformer.wte.weight": name}}
        (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(named))
        with pytest.raises(InputError, match=said):
            load_language_model(tmp_path / "model")
