"""The maximal update parametrization, muP (Yang et al. 2022, "Tensor Programs V", 2203.03466).

Under it activations, and their change in a step of Adam, are as large in a wide model as in a
narrow one, so that a learning rate tuned at the base width serves any other. With m the width over
the base width, and everything that grows in proportion:

    parameter                     initial std   learning rate   forward pass
    matrices of blocks, experts   / sqrt(m)     / m             queries times keys / head size
    embeddings, gains, biases     unchanged     unchanged
    head, tied or not             unchanged     unchanged       logits / m
    router                        / m           / m

The head follows the paper's table 8, which allows tying it to the embedding; the router, which maps
a width to a fixed number of experts as a head does, follows table 3, which is equivalent without a
factor in the forward pass (a dense model and its upcycled version then start alike at any width:
`stages.models.llama.moe_upcycling`). Optimizers whose updates do not grow with the width scale the
matrices' learning rate in their own way (`OptimizerSpec.mup_matrix_lr`).

A decayed weight loses as much per step at every width: the factor of the learning rate, which
multiplies the decay, is divided out, as in the paper's own package (`MuAdamW`).

`transformers` has no such factors: an export folds that of the logits into the last norm, which
only the head reads, and that of attention into the queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from stages.models.language_model import LanguageModel
from stages.models.language_model_config import attention_scale, width_multiple


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


def fold_mup_scales(state: Mapping[str, Tensor], model: LanguageModel) -> dict[str, Tensor]:
    """Return the weights with which a model without muP is the same function."""
    return _scale_weights(state, model, 1)


def unfold_mup_scales(state: Mapping[str, Tensor], model: LanguageModel) -> dict[str, Tensor]:
    """Return the weights with which this model is the function that one without muP is with
    `state`."""
    return _scale_weights(state, model, -1)


def _scale_weights(
    state: Mapping[str, Tensor], model: LanguageModel, power: int
) -> dict[str, Tensor]:
    config, found = model.config, dict(state)
    if config.mup is None:
        return found
    logits = width_multiple(config) ** -power
    queries = (attention_scale(config) * math.sqrt(config.head_size)) ** power
    rows = config.num_heads * config.head_size
    for name, value in state.items():
        if name.startswith(f"{model.last_norm}."):
            found[name] = value * logits
        elif name.endswith(model.query_weights):
            found[name] = value.clone()
            found[name][:rows] *= queries
    return found
