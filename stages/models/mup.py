"""The maximal update parametrisation, muP (Yang et al. 2022, "Tensor Programs V", 2203.03466).

Under it activations, and what a step of Adam changes in them, are as large in a wide model as in a
narrow one, so that a learning rate found at the base width serves any other. With m the width over
the base width, and all else that grows in proportion:

    parameter                     first deviation   learning rate   besides
    matrices of blocks, experts   / sqrt(m)         / m             queries times keys / head size
    embeddings, gains, biases     as it is          as it is
    head, tied or not             as it is          as it is        logits / m
    router                        / m               / m

The head follows the paper's table 8, which lets it be the embedding; the router, which maps a
width to a fixed number of experts as a head does, its table 3, which says the same without a factor
in the forward pass (where a dense model becomes one with experts, they start alike at any
width: `stages.models.initialization`). Muon's updates have singular values of the root of the width (see
`stages.training.optim.muon`), so the matrices' learning rate falls with the root of m there.

A decayed weight loses as much a step at every width: the rate that multiplies its decay is divided
out, as in the paper's own package (`MuAdamW`).

`transformers` knows no such factors, nor does it need them: those of the logits go into the last
norm, which nothing but the head reads, and those of the attention into the queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from stages.models.language_model import LanguageModel
from stages.models.language_model_config import (
    LanguageConfig,
    LlamaConfig,
    attention_scale,
    width_multiple,
)

_LAST_NORM = ("ln_f.weight", "ln_f.bias", "final_norm.weight")


def lr_multipliers(
    model: LanguageModel, matrix_lr: Callable[[float], float] = lambda multiple: 1 / multiple
) -> dict[str, float]:
    """Return the learning-rate multipliers other than 1, by parameter name; none without muP.

    Args:
        model: a language model.
        matrix_lr: the multiplier of block matrices from the width over the base width; it depends
            on the optimizer (`OptimizerSpec.mup_matrix_lr`). Routers have 1 / multiple.
    """
    multiple = width_multiple(model.config)
    if multiple == 1:
        return {}
    blocks = {id(p) for block in model.blocks for p in block.parameters() if p.ndim >= 2}
    return {
        name: 1 / multiple if "router" in name.split(".") else matrix_lr(multiple)
        for name, parameter in model.named_parameters()
        if id(parameter) in blocks
    }


def fold_mup_scales(state: Mapping[str, Tensor], config: LanguageConfig) -> dict[str, Tensor]:
    """The weights with which a model without muP is the same function."""
    return _times(state, config, 1)


def unfold_mup_scales(state: Mapping[str, Tensor], config: LanguageConfig) -> dict[str, Tensor]:
    """The weights with which a model of this config is what one without muP is with `state`."""
    return _times(state, config, -1)


def _times(state: Mapping[str, Tensor], config: LanguageConfig, power: int) -> dict[str, Tensor]:
    found = dict(state)
    if config.mup is None:
        return found
    logits = width_multiple(config) ** -power
    queries = (attention_scale(config) * math.sqrt(config.head_size)) ** power
    for name, value in state.items():
        if name in _LAST_NORM:
            found[name] = value * logits
        elif name.endswith("attention.q_norm.weight"):
            found[name] = value * queries
        elif name.endswith((".attn.c_attn.weight", ".attn.c_attn.bias", ".attention.qkv.weight")):
            if isinstance(config, LlamaConfig) and config.qk_norm:
                continue  # what comes before that norm makes no difference
            rows = config.num_heads * config.head_size
            found[name] = value.clone()
            found[name][:rows] *= queries
    return found
