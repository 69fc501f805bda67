"""What all model folders of `transformers` have in common: a config, and weights in safetensors."""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import InputError


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's `config.json`.

    Raises:
        InputError: there is none, or it is no JSON.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"not a model folder: {error}", where=str(folder)) from error
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights, from one file or several.

    Raises:
        InputError: a file is missing or damaged, or the index names one that is not of the
            folder's safetensors.
    """
    index = folder / "model.safetensors.index.json"
    try:
        names = {"model.safetensors"}
        if index.exists():
            names = set(json.loads(index.read_text())["weight_map"].values())
        if outside := [name for name in names if PurePath(name).name != name]:
            raise ValueError(f"the index names {outside[0]!r}, which is not in the folder")
        if others := [name for name in names if not name.endswith(".safetensors")]:
            raise ValueError(f"the index names {others[0]!r}, which is no safetensors")
        return {k: v for name in sorted(names) for k, v in load_file(folder / name).items()}
    except Exception as error:  # safetensors raises its own type, which it does not export
        raise InputError(f"cannot read the weights: {error}", where=str(folder)) from error
