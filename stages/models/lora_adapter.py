"""Folders of adapters in the layout of peft, which serving engines load next to a base model.

adapter_config.json          rank, alpha, dropout, the modules of `transformers` with adapters
adapter_model.safetensors    base_model.model.<module>.lora_A.weight, .lora_B.weight
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import InputError
from stages.models import safetensors_io
from stages.models.hf_io import write_json
from stages.models.language_model import LanguageModel
from stages.models.lora import AdapterShape, LowRank, attach, lora_layers

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_REFUSED = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "rank_pattern",
    "alpha_pattern", "target_parameters", "trainable_token_indices", "layer_replication",
    "arrow_config", "kasa_config", "alora_invocation_tokens",
)  # fmt: skip
"""Options of peft that change what an adapter computes, and are not computed here."""


def save_adapter(model: LanguageModel, folder: Path) -> None:
    """Write the adapters of a model, whole (not sharded), as float32; `folder` is created."""
    layers = list(lora_layers(model).values())
    modules = sorted(path for layer in layers for path, _ in layer.modules_by_path())
    rank, factor, dropout = layers[0].shape
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _whole(factor * rank),
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": layers[0].input_major,
        "target_modules": sorted({_within_block(module) for module in modules}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().float() for name, tensor in _tensors(model).items()}
    safetensors_io.write(folder / WEIGHTS, weights)
    write_json(folder / CONFIG, config)


def load_adapter(model: LanguageModel, folder: Path) -> LanguageModel:
    """Give a model the adapters of a folder, written here or by peft, and return it.

    Raises:
        InputError: the folder holds no adapters, or such as cannot be computed here, or those of
            another model.
    """
    config, stored = _read(folder)
    modules = {_module(name) for name in stored}
    factor = config["lora_alpha"] / config["r"] ** (0.5 if config.get("use_rslora") else 1)
    shape = AdapterShape(config["r"], factor, config.get("lora_dropout", 0.0))
    attach(model, modules.__contains__, shape)
    wanted = _tensors(model)
    different = sorted(stored.keys() ^ wanted.keys())
    different += [
        n for n, tensor in wanted.items() if n in stored and tensor.shape != stored[n].shape
    ]
    if different:
        raise InputError(
            f"the adapter and the model disagree in {different[0]}",
            where=str(folder),
            remedy="give the model that the adapter was trained on",
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(stored[name])
    return model


def _tensors(model: LanguageModel) -> dict[str, Tensor]:
    """Return the weights of all adapters by their names in peft."""
    found: dict[str, Tensor] = {}
    for layer in lora_layers(model).values():
        for module, adapter in layer.modules_by_path():
            found |= _named(module, adapter)
    return dict(sorted(found.items()))


def _named(module: str, adapter: LowRank) -> dict[str, Tensor]:
    prefix = f"{_PREFIX}{module}.lora_"
    return {f"{prefix}A.weight": adapter.lora_A, f"{prefix}B.weight": adapter.lora_B}


def _module(name: str) -> str:
    """Return the module of a tensor."""
    return name.removeprefix(_PREFIX).rpartition(".lora_")[0]


def _within_block(module: str) -> str:
    """Return the part of a module's path after the number of its block."""
    path = module.split(".")
    last = max(at for at, part in enumerate(path) if part.isdigit())
    return ".".join(path[last + 1 :])


def _whole(value: float) -> float | int:
    """Return a number without a fraction as an integer, which peft writes."""
    rounded = round(value, 9)
    return int(rounded) if rounded == int(rounded) else rounded


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())
        stored = load_file(folder / WEIGHTS)
        kind, bias = config["peft_type"], config.get("bias", "none")
        float(config["lora_alpha"] / config["r"])
    except Exception as error:  # safetensors raises its own type, which it does not export
        raise InputError(f"not a folder of adapters: {error}", where=str(folder)) from error
    odd = {key: config[key] for key in _REFUSED if config.get(key)}
    odd |= {"peft_type": kind} if kind != "LORA" else {}
    odd |= {"bias": bias} if bias != "none" else {}
    for key, value in odd.items():
        raise InputError(
            f"adapters with {key} = {value!r} cannot be read",
            where=str(folder / CONFIG),
            remedy="give an adapter without it",
        )
    return config, stored
