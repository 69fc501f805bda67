"""The modern decoder as `transformers` names it: Llama, Qwen3, Qwen3-MoE.

    no experts, queries and keys as they are     Llama      (LlamaForCausalLM)
    no experts, queries and keys normalised      Qwen3      (Qwen3ForCausalLM)
    experts, queries and keys normalised         Qwen3-MoE  (Qwen3MoeForCausalLM)

Ours keeps matrices that read the same input as one, and the experts of a layer as one tensor;
theirs are the parts. What theirs cannot say is refused with the key that says it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import InputError
from stages.models.language_model_config import ExpertsConfig, LlamaConfig

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
_TOP = {
    "embedding.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.out.weight": "self_attn.o_proj.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "feed_forward_norm.weight": "post_attention_layernorm.weight",
    "feed_forward.down.weight": "mlp.down_proj.weight",
    "feed_forward.router.weight": "mlp.gate.weight",
}
_QKV, _GATE_UP = "attention.qkv.weight", "feed_forward.gate_up.weight"
_EXPERTS_GATE_UP, _EXPERTS_DOWN = "feed_forward.experts.gate_up", "feed_forward.experts.down"


def model_type(config: LlamaConfig) -> str:
    """Which of theirs computes what this one does.

    Raises:
        InputError: none does: experts without normalised queries and keys.
    """
    if config.experts is None:
        return "qwen3" if config.qk_norm else "llama"
    if not config.qk_norm:
        raise InputError(
            "transformers has no model with experts whose queries and keys are not normalised",
            where="model.qk_norm",
            remedy="set it to true",
        )
    return "qwen3_moe"


def config_json(config: LlamaConfig) -> dict[str, Any]:
    """Their config, less the token ids."""
    kind = model_type(config)
    found: dict[str, Any] = {
        "model_type": kind,
        "architectures": [ARCHITECTURES[kind]],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "attention_dropout": config.dropout,
        "initializer_range": 0.02,
        "tie_word_embeddings": config.tie_embeddings,
        "dtype": "float32",
    }
    if kind == "llama":
        found["mlp_bias"] = False
    if config.experts:
        found |= {
            "num_experts": config.experts.num_experts,
            "num_experts_per_tok": config.experts.top_k,
            "norm_topk_prob": config.experts.norm_topk_prob,
            "moe_intermediate_size": config.intermediate_size,
            "decoder_sparse_step": config.experts.moe_every,
            "mlp_only_layers": [],
            "router_aux_loss_coef": config.experts.aux_loss_coef,
        }
    return found


def read_config(raw: Mapping[str, Any], where: str, dropout: float = 0.0) -> LlamaConfig:
    """Ours, of one of theirs.

    Raises:
        InputError: it says something that ours does not compute.
    """
    _refuse(raw, where)
    heads, experts = raw["num_attention_heads"], None
    if raw["model_type"] == "qwen3_moe":
        experts = ExpertsConfig(
            num_experts=raw.get("num_experts", raw.get("num_local_experts")),
            moe_every=raw.get("decoder_sparse_step", 1),
            top_k=raw["num_experts_per_tok"],
            norm_topk_prob=raw.get("norm_topk_prob", False),
            capacity_factor=None,
            aux_loss_coef=raw.get("router_aux_loss_coef", 1e-3),
        )
    rope = raw.get("rope_parameters") or {}
    return LlamaConfig(
        vocab_size=raw["vocab_size"],
        context_length=raw["max_position_embeddings"],
        num_layers=raw["num_hidden_layers"],
        hidden_size=raw["hidden_size"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        intermediate_size=raw["moe_intermediate_size"] if experts else raw["intermediate_size"],
        head_size=raw.get("head_dim") or raw["hidden_size"] // heads,
        qk_norm=raw["model_type"] != "llama",
        tie_embeddings=raw.get("tie_word_embeddings", False),
        dropout=dropout,
        rope_theta=raw.get("rope_theta") or rope.get("rope_theta", 10_000.0),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        experts=experts,
    )


def _refuse(raw: Mapping[str, Any], where: str) -> None:
    ropes = [raw.get(key) or {} for key in ("rope_parameters", "rope_scaling")]
    scalings = {rope.get("rope_type", rope.get("type", "default")) for rope in ropes}
    partial = {rope.get("partial_rotary_factor", 1.0) for rope in (raw, *ropes)}
    every = raw.get("decoder_sparse_step", 1)
    sizes = {raw.get("moe_intermediate_size"), raw.get("intermediate_size")}
    odd = {
        "hidden_act": raw.get("hidden_act", "silu") != "silu",
        "attention_bias": bool(raw.get("attention_bias")),
        "mlp_bias": bool(raw.get("mlp_bias")),
        "rope_parameters": scalings | {"default"} != {"default"},
        "partial_rotary_factor": partial != {1.0},
        "use_sliding_window": bool(raw.get("use_sliding_window")),
        "mlp_only_layers": bool(raw.get("mlp_only_layers")),
        "moe_intermediate_size": raw["model_type"] == "qwen3_moe" and every > 1 and len(sizes) > 1,
    }
    for key, refused in odd.items():
        if refused:
            raise InputError(
                f"models with {key} = {raw.get(key)!r} cannot be read",
                where=where,
                remedy="see the module stages.models.llama.conversion_llama for what can",
            )


def export(state: Mapping[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    """Our weights by their names."""
    return {
        name: value for ours, whole in state.items() for name, value in _parts(ours, whole, config)
    }


def _parts(name: str, value: Tensor, config: LlamaConfig) -> Iterator[tuple[str, Tensor]]:
    if name in _TOP:
        yield _TOP[name], value
        return
    _, layer, inner = name.split(".", 2)
    to = f"model.layers.{layer}."
    if inner == _QKV:
        sizes = [
            n * config.head_size
            for n in (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        ]
        for letter, part in zip("qkv", torch.split(value, sizes), strict=True):
            yield f"{to}self_attn.{letter}_proj.weight", part
    elif inner == _GATE_UP:
        for half, part in zip(("gate", "up"), value.chunk(2), strict=True):
            yield f"{to}mlp.{half}_proj.weight", part
    elif inner == _EXPERTS_GATE_UP:
        for expert, whole in enumerate(value):
            for half, part in zip(("gate", "up"), whole.chunk(2), strict=True):
                yield f"{to}mlp.experts.{expert}.{half}_proj.weight", part
    elif inner == _EXPERTS_DOWN:
        for expert, whole in enumerate(value):
            yield f"{to}mlp.experts.{expert}.down_proj.weight", whole
    else:
        yield to + _LAYER[inner], value


def collect(weights: Mapping[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    """Our weights of theirs.

    Raises:
        KeyError: some are missing.
    """
    found = {ours: weights[theirs] for ours, theirs in _TOP.items() if theirs in weights}
    if config.tie_embeddings:
        found.pop("lm_head.weight", None)
    for layer in range(config.num_layers):
        source = f"model.layers.{layer}."
        mine = f"layers.{layer}."
        for ours, theirs in _LAYER.items():
            if source + theirs in weights:
                found[mine + ours] = weights[source + theirs]
        found[mine + _QKV] = torch.cat(
            [weights[f"{source}self_attn.{letter}_proj.weight"] for letter in "qkv"]
        )
        if config.has_experts(layer):
            found |= _experts(weights, f"{source}mlp.experts.", mine, config)
        else:
            found[mine + _GATE_UP] = _gate_up(weights, f"{source}mlp.")
    return found


def _experts(
    weights: Mapping[str, Tensor], source: str, mine: str, config: LlamaConfig
) -> dict[str, Tensor]:
    """The experts of a layer, which some files hold apart and others together."""
    if f"{source}gate_up_proj" in weights:
        gate_up, down = weights[f"{source}gate_up_proj"], weights[f"{source}down_proj"]
    else:
        assert config.experts is not None
        each = range(config.experts.num_experts)
        gate_up = torch.stack([_gate_up(weights, f"{source}{e}.") for e in each])
        down = torch.stack([weights[f"{source}{e}.down_proj.weight"] for e in each])
    return {mine + _EXPERTS_GATE_UP: gate_up, mine + _EXPERTS_DOWN: down}


def _gate_up(weights: Mapping[str, Tensor], source: str) -> Tensor:
    return torch.cat([weights[f"{source}{half}_proj.weight"] for half in ("gate", "up")])
