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
from stages.models.language_model_config import DecoderConfig, LanguageConfig
from stages.models.llama.modeling_llama import Decoder
from stages.models.mup import unfolded
from stages.models.registry import language_model

_ROUTER_STD = 1e-3
"""Of a fresh router before a layer that was dense: it hardly prefers anybody."""


def first_weights(config: LanguageConfig, folder: Path | None) -> GPT | Decoder:
    """A model of this shape: fresh, or with the weights of a folder, which may lack the experts.

    Raises:
        InputError: the folder's model is of another shape.
    """
    model = language_model(config)
    if folder is None:
        return model
    given = load_language_model(folder)
    _compare(config, given.config, folder)
    weights = given.state_dict()
    if _experts(config) and not _experts(given.config):
        assert isinstance(config, DecoderConfig)
        weights = upcycled(weights, config)
    model.load_state_dict(unfolded(weights, config))
    return model


def upcycled(dense: dict[str, Tensor], config: DecoderConfig) -> dict[str, Tensor]:
    """The weights of a dense decoder as those of one with experts, routers drawn anew."""
    assert config.experts is not None
    num, weights = config.experts.num, dict(dense)
    scale = 1.0 if config.experts.normalize_gates else num / config.experts.top_k
    for layer in range(config.layers):
        if config.has_experts(layer):
            at = f"layers.{layer}.feed_forward."
            gate_up, down = weights.pop(f"{at}gate_up.weight"), weights.pop(f"{at}down.weight")
            weights[f"{at}experts.gate_up"] = gate_up.expand(num, -1, -1).clone()
            weights[f"{at}experts.down"] = (scale * down).expand(num, -1, -1).clone()
            weights[f"{at}router.weight"] = _ROUTER_STD * torch.randn(num, config.width)
    return weights


def _experts(config: LanguageConfig) -> bool:
    return isinstance(config, DecoderConfig) and config.experts is not None


def _compare(wanted: LanguageConfig, given: LanguageConfig, folder: Path) -> None:
    """See that the shapes are alike in all that the weights decide."""
    ours, theirs = _said(wanted), _said(given)
    if isinstance(given, DecoderConfig) and not given.experts:
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


def _said(config: LanguageConfig) -> dict[str, Any]:
    """What the weights decide of a shape, by the keys of `model`. A decoder has weights for no
    position, so its context may change."""
    keys = ("vocab_size", "layers", "width", "heads", "inner", "norm_eps")
    said = {"family": "gpt2", **{key: getattr(config, key) for key in keys}}
    if isinstance(config, DecoderConfig):
        said["family"] = "qwen3 or switch" if config.qk_norm else "llama"
        own = ("kv_heads", "head_size", "tied", "rope_theta")
        return said | {key: getattr(config, key) for key in own} | {"experts": _layout(config)}
    return said | {"context": config.context}


def _layout(config: DecoderConfig) -> dict[str, Any] | None:
    """Of the experts, what decides the function that the weights make."""
    e = config.experts
    if e is None:
        return None
    said = {"num": e.num, "every": e.every, "top_k": e.top_k}
    return said | {"normalize_gates": e.normalize_gates and e.top_k > 1}
