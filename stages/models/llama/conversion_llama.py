"""Conversion of the modern decoder from and to Llama, Qwen3 and Qwen3-MoE of `transformers`.

    no experts, queries and keys as they are     Llama      (LlamaForCausalLM)
    no experts, queries and keys normalized      Qwen3      (Qwen3ForCausalLM)
    experts, queries and keys normalized         Qwen3-MoE  (Qwen3MoeForCausalLM)

Here matrices that read the same input are one, and the experts of a layer one tensor;
`transformers` stores the parts. A config that the model here cannot compute is refused with the key
at fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import InputError
from stages.models.language_model_config import ExpertsConfig
from stages.models.llama.configuration_llama import LlamaConfig
from stages.models.weight_table import Concatenated, Stacked, WeightEntry

_LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.out.weight": "self_attn.o_proj.weight",
    "feed_forward_norm.weight": "post_attention_layernorm.weight",
}
_QK_NORM = {
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
}


class LlamaConversion:
    """The conversion of a modern decoder from and to a folder of Llama, Qwen3 or Qwen3-MoE."""

    ignored: tuple[str, ...] = ("rotary_emb.inv_freq", "lm_head.weight")
    body = "model."

    def config_json(self, config: LlamaConfig) -> dict[str, Any]:
        """Return the `config.json` of `transformers` without token ids.

        Raises:
            InputError: `transformers` has no such model: experts without normalized queries and
                keys.
        """
        kind = _model_type(config)
        found: dict[str, Any] = {
            "model_type": kind,
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

    def read_config(self, raw: Mapping[str, Any], where: str, dropout: float = 0.0) -> LlamaConfig:
        """Return the config that a `config.json` describes.

        Raises:
            InputError: it describes a model that cannot be computed here.
            KeyError, ValueError: it lacks a size, or its sizes do not fit each other.
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

    def weight_table(self, config: LlamaConfig) -> list[WeightEntry]:
        """Return the correspondence of weights."""
        return list(_entries(config))


def _entries(config: LlamaConfig) -> Iterator[WeightEntry]:
    yield WeightEntry("embedding.weight", ("model.embed_tokens.weight",))
    names = _LAYER | (_QK_NORM if config.qk_norm else {})
    rows = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    heads = Concatenated(tuple(number * config.head_size for number in rows))
    for layer in range(config.num_layers):
        model_prefix, stored_prefix = f"layers.{layer}.", f"model.layers.{layer}."
        for name, stored in names.items():
            yield WeightEntry(model_prefix + name, (stored_prefix + stored,))
        qkv = tuple(f"{stored_prefix}self_attn.{letter}_proj.weight" for letter in "qkv")
        yield WeightEntry(f"{model_prefix}attention.qkv.weight", qkv, heads)
        feed_forward = _expert_entries if config.has_experts(layer) else _dense_entries
        yield from feed_forward(config, f"{model_prefix}feed_forward.", f"{stored_prefix}mlp.")
    yield WeightEntry("final_norm.weight", ("model.norm.weight",))
    if not config.tie_embeddings:
        yield WeightEntry("lm_head.weight", ("lm_head.weight",))


def _dense_entries(
    config: LlamaConfig, model_prefix: str, stored_prefix: str
) -> Iterator[WeightEntry]:
    gate_up = tuple(f"{stored_prefix}{half}_proj.weight" for half in ("gate", "up"))
    halves = Concatenated((config.intermediate_size, config.intermediate_size))
    yield WeightEntry(f"{model_prefix}gate_up.weight", gate_up, halves)
    yield WeightEntry(f"{model_prefix}down.weight", (f"{stored_prefix}down_proj.weight",))


def _expert_entries(
    config: LlamaConfig, model_prefix: str, stored_prefix: str
) -> Iterator[WeightEntry]:
    """Yield a router and its experts, which some folders store as one tensor per layer."""
    assert config.experts is not None
    experts = [f"{stored_prefix}experts.{number}." for number in range(config.experts.num_experts)]
    gate_up = tuple(f"{e}{half}_proj.weight" for e in experts for half in ("gate", "up"))
    down = tuple(f"{expert}down_proj.weight" for expert in experts)
    inner, merged = config.intermediate_size, f"{stored_prefix}experts."
    yield WeightEntry(f"{model_prefix}router.weight", (f"{stored_prefix}gate.weight",))
    yield WeightEntry(
        f"{model_prefix}experts.gate_up", gate_up, Stacked((inner, inner)), f"{merged}gate_up_proj"
    )
    yield WeightEntry(
        f"{model_prefix}experts.down", down, Stacked((config.hidden_size,)), f"{merged}down_proj"
    )


def _model_type(config: LlamaConfig) -> str:
    if config.experts is None:
        return "qwen3" if config.qk_norm else "llama"
    if not config.qk_norm:
        raise InputError(
            "transformers has no model with experts whose queries and keys are not normalized",
            where="model.family",
            remedy="choose qwen3 or switch",
        )
    return "qwen3_moe"


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
                remedy="use a model without it",
            )
