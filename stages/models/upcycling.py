"""The first weights of a training: drawn, read, or a dense model's made into one with experts.

Upcycling (Komatsuzaki et al. 2022): each expert begins as the dense feed-forward layer of its
block. The gate multiplies what an expert says by its probability, about 1 / E at the start, so the
experts' last matrix is made E / k times larger: the function is that of the dense model but for the
little by which the fresh router prefers one expert. Gates that add up to 1 need no such factor.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import InputError
from stages.models.config import DecoderConfig, LanguageConfig
from stages.models.decoder import Decoder
from stages.models.families import language_model
from stages.models.gpt import GPT
from stages.models.huggingface import load_language_model
from stages.models.mup import unfolded

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
    if type(wanted) is type(given):
        if isinstance(wanted, DecoderConfig) and isinstance(given, DecoderConfig):
            if not given.experts or _layout(wanted) == _layout(given):
                wanted, given = (
                    replace(c, context=2, dropout=0.0, experts=None, init_scale=None, mup=None)
                    for c in (wanted, given)
                )
        else:
            wanted, given = (replace(c, dropout=0.0, mup=None) for c in (wanted, given))
    if wanted != given:
        raise InputError(
            f"the weights are of another shape: {given}, not {wanted}",
            where=str(folder),
            remedy="say the same under `model`, or leave `start` out",
        )


def _layout(config: DecoderConfig) -> tuple[int, ...]:
    """Of the experts, what decides the function that the weights make."""
    e = config.experts
    return (e.num, e.every, e.top_k, e.normalize_gates and e.top_k > 1) if e else ()
