"""The first weights of a training: drawn, read, or a dense model's made into one with experts.

Upcycling (Komatsuzaki et al. 2022): each expert begins as the dense feed-forward layer of its
block. The gate multiplies what an expert says by its probability, about 1 / E at the start, so the
experts' last matrix is made E / k times larger: the function is that of the dense model but for the
little by which the fresh router prefers one expert. Gates that add up to 1 need no such factor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import InputError
from stages.models.gpt2.modeling_gpt2 import GPT
from stages.models.hf_export import load_language_model
from stages.models.language_model_config import LanguageConfig, LlamaConfig
from stages.models.llama.modeling_llama import Llama
from stages.models.mup import unfold_mup_scales
from stages.models.registry import language_model

_ROUTER_STD = 1e-3
"""Of a fresh router before a layer that was dense: it hardly prefers anybody."""


def initial_model(config: LanguageConfig, folder: Path | None) -> GPT | Llama:
    """A model of this shape: fresh, or with the weights of a folder, which may lack the experts.

    Raises:
        InputError: the folder's model is of another shape.
    """
    model = language_model(config)
    if folder is None:
        return model
    given = load_language_model(folder)
    _check_compatible(config, given.config, folder)
    weights = given.state_dict()
    if _experts(config) and not _experts(given.config):
        assert isinstance(config, LlamaConfig)
        weights = upcycled(weights, config)
    model.load_state_dict(unfold_mup_scales(weights, config))
    return model


def upcycled(dense: dict[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    """The weights of a dense decoder as those of one with experts, routers drawn anew."""
    assert config.experts is not None
    num, weights = config.experts.num_experts, dict(dense)
    scale = 1.0 if config.experts.norm_topk_prob else num / config.experts.top_k
    for layer in range(config.num_layers):
        if config.has_experts(layer):
            at = f"layers.{layer}.feed_forward."
            gate_up, down = weights.pop(f"{at}gate_up.weight"), weights.pop(f"{at}down.weight")
            weights[f"{at}experts.gate_up"] = gate_up.expand(num, -1, -1).clone()
            weights[f"{at}experts.down"] = (scale * down).expand(num, -1, -1).clone()
            weights[f"{at}router.weight"] = _ROUTER_STD * torch.randn(num, config.hidden_size)
    return weights


def _experts(config: LanguageConfig) -> bool:
    return isinstance(config, LlamaConfig) and config.experts is not None


def _check_compatible(wanted: LanguageConfig, given: LanguageConfig, folder: Path) -> None:
    """See that the shapes are alike in all that the weights decide."""
    ours, theirs = _architecture_fields(wanted), _architecture_fields(given)
    if isinstance(given, LlamaConfig) and not given.experts:
        ours["experts"] = None
    if type(wanted) is not type(given):
        ours, theirs = ({"family": said["family"]} for said in (ours, theirs))
    apart = [f"{key}: {theirs[key]}, not {ours[key]}" for key in ours if ours[key] != theirs[key]]
    if apart:
        raise InputError(
            f"the weights are of another shape: {'; '.join(apart)}",
            where=str(folder),
            remedy="say the same under `model`, or leave `start` out",
        )


def _architecture_fields(config: LanguageConfig) -> dict[str, Any]:
    """What the weights decide of a shape, by the keys of `model`. A decoder has weights for no
    position, so its context may change."""
    keys = ("vocab_size", "num_layers", "hidden_size", "num_heads", "intermediate_size", "norm_eps")
    said = {"family": "gpt2", **{key: getattr(config, key) for key in keys}}
    if isinstance(config, LlamaConfig):
        said["family"] = "qwen3 or switch" if config.qk_norm else "llama"
        own = ("num_kv_heads", "head_size", "tie_embeddings", "rope_theta")
        return said | {key: getattr(config, key) for key in own} | {"experts": _layout(config)}
    return said | {"context_length": config.context_length}


def _layout(config: LlamaConfig) -> dict[str, Any] | None:
    """Of the experts, what decides the function that the weights make."""
    e = config.experts
    if e is None:
        return None
    said = {"num_experts": e.num_experts, "moe_every": e.moe_every, "top_k": e.top_k}
    return said | {"norm_topk_prob": e.norm_topk_prob and e.top_k > 1}
