"""The low-rank adapters of a pipeline file (Hu et al. 2021), and which layers they belong to.

Imports no torch: `headwater plan` reads this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.stage import Section

if TYPE_CHECKING:
    from stages.models.language_model_config import LanguageModelConfig

ROLES = ("attention", "mlp")


class LoRAConfig(Section):
    """Low-rank adapters: a frozen weight W computes as W + (alpha / rank) B A, and only A and B are
    trained (Hu et al. 2021, section 4.1)."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of an adapter, the rows of A. Default: 16."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Numerator of the adapter's factor, alpha / rank. Default: 32."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability of the adapter's input. Default: 0."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ROLES
    """Linear layers with adapters: `attention`, `mlp`, or names of modules in `transformers`, such
    as `q_proj` or `attn.c_attn`. Default: attention and mlp."""


def is_target(module: str, targets: Sequence[str]) -> bool:
    """Return whether a linear layer of `transformers`, given by the path of its module, is one of
    the targets: by its role, or by the last parts of its path."""
    path = module.split(".")
    role = "attention" if any(part.endswith("attn") for part in path) else "mlp"
    return role in targets or any(f".{module}".endswith(f".{target}") for target in targets)


def trained_parameters(config: LanguageModelConfig, lora: LoRAConfig) -> int:
    """Return the number of weights of all adapters of a model."""
    return sum(
        layer.number * lora.rank * (layer.rows + layer.columns)
        for layer in config.linear_layers()
        if is_target(layer.module, lora.targets)
    )


def target_problem(config: LanguageModelConfig, targets: Sequence[str]) -> tuple[str, str] | None:
    """Return what is wrong with targets for a model, and the remedy; None if nothing is."""
    layers = list(config.linear_layers())
    experts = [layer.module for layer in layers if layer.expert]
    for target in targets:
        matching = [layer for layer in layers if is_target(layer.module, [target])]
        if not matching:
            names = ", ".join(layer.module for layer in layers if not layer.expert)
            return f"the model has no linear layer {target!r}", f"name {', '.join(ROLES)}, {names}"
        if any(layer.module in experts for layer in matching):
            return (
                f"{target!r} names experts, whose weights cannot have adapters",
                "name layers of attention only: [attention]",
            )
    return None
