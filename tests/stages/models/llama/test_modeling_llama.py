"""The modern decoder against `transformers` (Llama, Qwen3, Qwen3-MoE), both ways; cache, masks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from pipeline.errors import InputError
from stages.models.language_model import AttentionContext, ForwardOutputs
from stages.models.language_model_config import ExpertsConfig
from stages.models.llama.configuration_llama import LlamaConfig
from stages.models.llama.conversion_llama import LlamaConversion
from stages.models.llama.modeling_llama import Llama
from stages.models.model_io import load_language_model, save_language_model
from stages.models.weight_table import export_weights

LLAMA = LlamaConfig(
    vocab_size=97,
    context_length=32,
    num_layers=3,
    hidden_size=48,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=64,
    head_size=12,
)
QWEN3 = replace(LLAMA, qk_norm=True, head_size=16, tie_embeddings=False)
SWITCH = replace(
    QWEN3,
    num_layers=4,
    tie_embeddings=True,
    experts=ExpertsConfig(num_experts=4, moe_every=2, capacity_factor=None),
)
TOP_2 = replace(
    SWITCH,
    experts=ExpertsConfig(
        num_experts=4, moe_every=1, top_k=2, norm_topk_prob=True, capacity_factor=None
    ),
)
CONFIGS = {"llama": LLAMA, "qwen3": QWEN3, "switch": SWITCH, "top-2": TOP_2}
SMALL = {
    "vocab_size": 97, "max_position_embeddings": 32, "hidden_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 64,
}  # fmt: skip


def lively(model):
    """Weights far from their start, so that norms, routers and every part matter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def tokens_BT():
    return torch.randint(4, 97, (3, 20), generator=torch.Generator().manual_seed(0))


def differentiate(logits_BTV, tokens_BT):
    torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()
    ).backward()


def whole_gradients(model):
    found = {name: p.grad for name, p in model.named_parameters()}
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    return found


def one_by_one(theirs):
    """Their gradients, with each expert's matrices named as their files name them."""
    for name, gradient in theirs.items():
        source, fused, kind = name.partition(".experts.")
        if not fused:
            yield name, gradient
            continue
        for expert, part in enumerate(gradient):
            halves = part.chunk(2) if kind == "gate_up_proj" else (part,)
            names = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
            for half, matrix in zip(names, halves, strict=True):
                yield f"{source}.experts.{expert}.{half}.weight", matrix


def assert_same(ours, theirs, tokens_BT):
    logits, reference = ours(tokens_BT), theirs(tokens_BT).logits
    torch.testing.assert_close(logits, reference, rtol=0, atol=1e-5)
    differentiate(logits, tokens_BT)
    differentiate(reference, tokens_BT)
    found = export_weights(whole_gradients(ours), LlamaConversion().weight_table(ours.config))
    wanted = dict(one_by_one(whole_gradients(theirs)))
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("name", CONFIGS)
def test_ours_loads_in_transformers_with_the_same_logits_and_gradients(name, tmp_path, tokens_BT):
    model = lively(Llama(CONFIGS[name]))
    save_language_model(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    kind = {"llama": LlamaForCausalLM, "qwen3": Qwen3ForCausalLM}.get(name, Qwen3MoeForCausalLM)
    assert type(theirs) is kind
    assert_same(model, theirs, tokens_BT)


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe"])
def test_theirs_loads_in_ours_with_the_same_logits_and_gradients(name, tmp_path, tokens_BT):
    moe = {"num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 24}
    made = {
        "llama": lambda: LlamaForCausalLM(transformers.LlamaConfig(**SMALL, rope_parameters={
            "rope_type": "default", "rope_theta": 5e5})),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, tie_word_embeddings=True)),
        "qwen3_moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL, **moe)),
    }  # fmt: skip
    theirs = lively(made[name]())
    theirs.save_pretrained(tmp_path)
    model = load_language_model(tmp_path)
    assert isinstance(model, Llama)
    assert_same(model, theirs, tokens_BT)


def test_what_ours_does_not_compute_is_refused(tmp_path, tokens_BT):
    save_language_model(Llama(LLAMA), tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    for key, value in {
        "hidden_act": "gelu",
        "attention_bias": True,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4},
    }.items():
        (tmp_path / "config.json").write_text(json.dumps({**raw, key: value}))
        with pytest.raises(InputError, match=f"models with {key} ="):
            load_language_model(tmp_path)
    older = {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 4.0}}
    (tmp_path / "config.json").write_text(json.dumps({**raw, **older}))
    with pytest.raises(InputError, match="models with rope_parameters ="):
        load_language_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**raw, "num_hidden_layers": 4}))
    with pytest.raises(InputError, match=r"no tensor.*layers\.3"):
        load_language_model(tmp_path)
    with pytest.raises(InputError, match="not normalized"):
        save_language_model(Llama(replace(SWITCH, qk_norm=False)), tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_count_of_parameters_is_exact(name):
    config = CONFIGS[name]
    counted = sum(p.numel() for p in Llama(config).parameters())
    assert counted == config.parameters
    spared = config.parameters - config.active_parameters
    inactive = config.experts.num_experts - config.experts.top_k if config.experts else 0
    per_layer = config.feed_forward_parameters * inactive
    assert spared == len(config.moe_layers) * per_layer


@pytest.mark.parametrize("steps", [[20], [5, 1, 1, 7, 6]])
@pytest.mark.parametrize("name", CONFIGS)
def test_reading_through_a_cache_is_reading_at_once(name, steps, tokens_BT):
    model = lively(Llama(CONFIGS[name]))
    with torch.no_grad():
        cache = model.cache(3, 20)
        pieces = [model(piece, cache=cache) for piece in tokens_BT.split(steps, 1)]
        torch.testing.assert_close(torch.cat(pieces, 1), model(tokens_BT))


def test_left_padding_changes_nothing(tokens_BT):
    model = lively(Llama(QWEN3))
    padded_BT = torch.cat([torch.zeros(3, 6, dtype=torch.long), tokens_BT], 1)
    mask_BT = torch.arange(26).expand(3, -1) >= 6
    torch.testing.assert_close(model(padded_BT, mask_BT=mask_BT)[:, 6:], model(tokens_BT))


@pytest.mark.parametrize("name", CONFIGS)
def test_recomputing_changes_no_gradient(name, tokens_BT):
    model = lively(Llama(CONFIGS[name]))
    found = []
    for model.activation_checkpointing in (False, True):
        model.zero_grad()
        outputs = ForwardOutputs()
        total = model(tokens_BT, targets_BT=tokens_BT.roll(-1, 1), z_coef=1e-3, outputs=outputs)
        (total / 60 + sum(r.balance + r.z for r in outputs.routing)).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "4 heads cannot share 3 heads of keys"),
        ({"head_size": 7}, "even head size, not 7"),
        ({"num_layers": 0}, "must be positive"),
        ({"experts": ExpertsConfig(num_experts=2, moe_every=5)}, "none of 3 blocks has experts"),
        ({"dropout": 1.5}, "dropout must be in"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(LLAMA, **change)


def test_residual_branches_alone_are_dropped_from(tmp_path: Path) -> None:
    save_language_model(lively(Llama(LLAMA)), tmp_path)
    model = load_language_model(tmp_path, residual_dropout=0.3).train()
    context = AttentionContext(None, None, model.rotary(torch.arange(12)[None]))
    x_BTC = model.embed(torch.arange(24).view(2, 12), torch.arange(12)[None])
    assert torch.equal(x_BTC, model.eval().embed(torch.arange(24).view(2, 12), None))
    block = model.train().layers[0]
    torch.manual_seed(4)
    found, _ = block(x_BTC, context)
    block.eval()
    torch.manual_seed(4)
    attended = block.attention(block.attention_norm(x_BTC), context)
    expected = x_BTC + F.dropout(attended, 0.3)
    expected += F.dropout(block.feed_forward(block.feed_forward_norm(expected))[0], 0.3)
    torch.testing.assert_close(found, expected)


def test_folders_survive_a_round_trip(tmp_path: Path) -> None:
    for name, config in CONFIGS.items():
        model = lively(Llama(config))
        save_language_model(model, tmp_path / name)
        again = load_language_model(tmp_path / name)
        for key, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[key], value), (name, key)
