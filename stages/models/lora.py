"""Low-rank adapters of linear layers (Hu et al. 2021): y = W x + (alpha / rank) B A x.

    model = add_lora(load_language_model(folder), LoRAConfig(rank=8))    # trains A and B only
    ...
    save_adapter(model, folder)        # stages.models.lora_adapter: the layout of peft
    save_language_model(merge(model), folder)

B starts at zero, so that training starts from the function of W (section 4.1). Projections that are
one matrix here and several modules in `transformers` (queries, keys and values; gate and up) have
one adapter per module, as peft has.

Shape suffixes as in `stages.models.language_model`; R rank, O rows of a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import InputError
from stages.models.language_model import LanguageModel
from stages.models.lora_config import LoRAConfig, is_target, target_problem
from stages.models.registry import find_family
from stages.models.weight_table import Concatenated, Transposed


class LowRank(nn.Module):
    """The adapter of one module of `transformers`: x -> factor B A x."""

    def __init__(
        self, columns: int, rows: int, rank: int, factor: float, dropout: float, like: Tensor
    ) -> None:
        super().__init__()
        self.factor, self.dropout = factor, dropout
        self.lora_A = nn.Parameter(like.new_empty(rank, columns))
        self.lora_B = nn.Parameter(like.new_zeros(rows, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x_C: Tensor) -> Tensor:
        """Return what is added to the rows of the module, (..., O)."""
        dropped_C = F.dropout(x_C, self.dropout, self.training)
        return F.linear(F.linear(dropped_C, self.lora_A), self.lora_B) * self.factor

    def delta(self) -> Tensor:
        """Return what is added to the weight, (O, C) in float32."""
        return self.factor * (self.lora_B.float() @ self.lora_A.float())


class Part(NamedTuple):
    """The rows of a weight that are one module in `transformers`."""

    module: str
    """Path of the module."""
    rows: int

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.module.rpartition(".")[2]


class AdapterShape(NamedTuple):
    """The settings that all adapters of a model share."""

    rank: int
    factor: float
    dropout: float


class LoRALinear(nn.Linear):
    """A frozen linear layer, with adapters of some of its parts."""

    def __init__(
        self,
        linear: nn.Linear,
        parts: Sequence[Part],
        adapted: Callable[[str], bool],
        shape: AdapterShape,
        *,
        input_major: bool,
    ) -> None:
        bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.parts, self.shape = tuple(parts), shape
        self.input_major = input_major
        """True if `transformers` stores the weight input-major."""
        self.adapters = nn.ModuleDict(
            {
                part.name: LowRank(self.in_features, part.rows, *shape, self.weight)
                for part in parts
                if adapted(part.module)
            }
        )

    def forward(self, x_C: Tensor) -> Tensor:
        """Return the output of the layer with its adapters."""
        y_O = super().forward(x_C)
        outputs = torch.split(y_O, [part.rows for part in self.parts], dim=-1)
        pairs = zip(self.parts, outputs, strict=True)
        adapted = [
            output + self.adapters[part.name](x_C) if part.name in self.adapters else output
            for part, output in pairs
        ]
        return adapted[0] if len(adapted) == 1 else torch.cat(adapted, -1)

    def modules_by_path(self) -> Iterator[tuple[str, LowRank]]:
        """Yield the adapters by the paths of their modules in `transformers`."""
        for part in self.parts:
            if part.name in self.adapters:
                adapter = self.adapters[part.name]
                assert isinstance(adapter, LowRank)
                yield part.module, adapter

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return a linear layer of its own that computes the same."""
        bias = self.bias is not None
        linear = nn.Linear(self.in_features, self.out_features, bias, device="meta")
        weight, found = self.weight.float().clone(), dict(self.modules_by_path())
        sizes = [part.rows for part in self.parts]
        for part, rows in zip(self.parts, torch.split(weight, sizes), strict=True):
            if part.module in found:
                rows += found[part.module].delta()
        linear.weight = nn.Parameter(weight.to(self.weight.dtype))
        linear.bias = self.bias
        return linear.train(self.training)


def add_lora(model: LanguageModel, config: LoRAConfig) -> LanguageModel:
    """Give the linear layers that the config names adapters, freeze everything else, and return the
    model.

    The first A are drawn from torch's global generator.

    Raises:
        InputError: a target names no linear layer, or experts.
    """
    if problem := target_problem(model.config, config.targets):
        raise InputError(problem[0], where="lora.targets", remedy=problem[1])
    shape = AdapterShape(config.rank, config.alpha / config.rank, config.dropout)
    return attach(model, lambda module: is_target(module, config.targets), shape)


def attach(
    model: LanguageModel, adapted: Callable[[str], bool], shape: AdapterShape
) -> LanguageModel:
    """Give adapters to the linear layers of the blocks whose module in `transformers` is `adapted`,
    and freeze everything else."""
    model.requires_grad_(False)
    for entry in find_family(model.config).conversion().weight_table(model.config):
        name = entry.name.removesuffix(".weight")
        linear = model.get_submodule(name) if name != entry.name else None
        modules = [stored.removesuffix(".weight") for stored in entry.stored]
        if type(linear) is nn.Linear and _in_block(name) and any(map(adapted, modules)):
            rows = linear.out_features
            concatenated = isinstance(entry.transform, Concatenated)
            sizes = entry.transform.sizes if concatenated else (rows,)  # type: ignore[attr-defined]
            parts = [Part(module, size) for module, size in zip(modules, sizes, strict=True)]
            stored = isinstance(entry.transform, Transposed)
            layer = LoRALinear(linear, parts, adapted, shape, input_major=stored)
            model.set_submodule(name, layer.train(model.training))
    return model


def _in_block(name: str) -> bool:
    """Return whether a layer is a matrix of a repeated block: neither the head nor a router."""
    path = name.split(".")
    return any(part.isdigit() for part in path) and "router" not in path


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Return the layers with adapters by name."""
    return {n: layer for n, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def merge(model: LanguageModel) -> LanguageModel:
    """Add the adapters to the weights, in place, and return the model, which then has plain linear
    layers and trains all its weights."""
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.merged())
    return model.requires_grad_(True)
