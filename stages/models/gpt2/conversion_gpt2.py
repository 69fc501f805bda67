"""Conversion of GPTs from and to the GPT-2 of `transformers`.

The weights have the names of `GPT2LMHeadModel` under `transformer.`; the four projections of a
block are stored input-major (Conv1D). The files of the hub itself have no `transformer.` prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import InputError
from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.weight_table import IDENTITY, Transposed, WeightEntry

_REQUIRED = {
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
"""Options of a GPT-2 that the model here computes in one way only."""
_PROJECTIONS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


class GPT2Conversion:
    """The conversion of a GPT from and to a GPT-2 folder."""

    ignored: tuple[str, ...] = (".attn.bias", ".attn.masked_bias", "lm_head.weight")
    body = "transformer."

    def config_json(self, config: GPTConfig) -> dict[str, Any]:
        """Return the `config.json` of a GPT-2 without token ids."""
        return {
            "model_type": "gpt2",
            "activation_function": "gelu_new",
            "vocab_size": config.vocab_size,
            "n_positions": config.context_length,
            "n_embd": config.hidden_size,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_inner": config.intermediate_size,
            "layer_norm_epsilon": config.norm_eps,
            "attn_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "resid_pdrop": config.branch_dropout,
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
            "dtype": "float32",
        }

    def read_config(self, raw: Mapping[str, Any], where: str, dropout: float = 0.0) -> GPTConfig:
        """Return the config that a GPT-2's `config.json` describes.

        Raises:
            InputError: it has an option that is not computed here.
            KeyError, ValueError: it lacks a size, or its sizes do not fit each other.
        """
        if raw.get("activation_function", "gelu_new") not in ("gelu_new", "gelu_pytorch_tanh"):
            raise InputError(f"unknown activation {raw['activation_function']!r}", where=where)
        for key, required in _REQUIRED.items():
            if raw.get(key, required) != required:
                raise InputError(
                    f"models with {key} = {raw[key]!r} cannot be read",
                    where=where,
                    remedy=f"give a model with {required!r}",
                )
        return GPTConfig(
            vocab_size=raw["vocab_size"],
            context_length=raw["n_positions"],
            num_layers=raw["n_layer"],
            hidden_size=raw["n_embd"],
            num_heads=raw["n_head"],
            dropout=dropout,
            intermediate_size=raw.get("n_inner") or 0,
            norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        )

    def weight_table(self, config: GPTConfig) -> list[WeightEntry]:
        """Return the correspondence of weights."""
        transposed = Transposed()
        names = {"wte.weight": IDENTITY, "wpe.weight": IDENTITY}
        for layer in range(config.num_layers):
            for module in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
                for kind in ("weight", "bias"):
                    matrix = module in _PROJECTIONS and kind == "weight"
                    names[f"h.{layer}.{module}.{kind}"] = transposed if matrix else IDENTITY
        names |= {"ln_f.weight": IDENTITY, "ln_f.bias": IDENTITY}
        return [
            WeightEntry(name, (self.body + name,), transform) for name, transform in names.items()
        ]
