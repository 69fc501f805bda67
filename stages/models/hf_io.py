"""Files of a model folder of `transformers`: config, weights, tokenizer, token ids, model card.

JSON is written with sorted keys, so that equal models give equal bytes whatever library version
wrote them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.errors import InputError

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")
_CHAT_TAG = "conversational"


class SpecialIds(NamedTuple):
    """Token ids that generation and scoring need; None means that there is no such token."""

    pad: int | None = 0
    bos: int | None = 2
    eos: int | None = 3


DEFAULT_IDS = SpecialIds()


# --- config -------------------------------------------------------------------------------------


def read_config(folder: Path) -> dict[str, Any]:
    """Return the folder's `config.json`.

    Raises:
        InputError: the file is missing or not JSON.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"not a model folder: {error}", where=str(folder)) from error
    return config


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file with sorted keys."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def special_ids(folder: Path) -> SpecialIds:
    """Return the ids of pad, bos and eos that a folder's config names."""
    config = read_config(folder)
    return SpecialIds(
        pad=_first_id(config.get("pad_token_id")),
        bos=_first_id(config.get("bos_token_id")),
        eos=_first_id(config.get("eos_token_id")),
    )


def _first_id(value: Any) -> int | None:
    """Return one id: of several ends the first counts, and -1 is a former way to write none."""
    if isinstance(value, list):
        value = value[0] if value else None
    return None if value is None or value < 0 else int(value)


def token_id_fields(ids: SpecialIds) -> dict[str, int | None]:
    """Return the fields of a config for token ids; a missing field would mean the default of the
    family in `transformers`, so None is written too."""
    return {"bos_token_id": ids.bos, "eos_token_id": ids.eos, "pad_token_id": ids.pad}


# --- weights ------------------------------------------------------------------------------------


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return all weights, from one file or several.

    Raises:
        InputError: a file is missing or damaged, or the index names a file outside the folder or of
            another format.
    """
    index = folder / "model.safetensors.index.json"
    try:
        names = {"model.safetensors"}
        if index.exists():
            names = set(json.loads(index.read_text())["weight_map"].values())
        if outside := [name for name in names if PurePath(name).name != name]:
            raise ValueError(f"the index names {outside[0]!r}, which is not in the folder")
        if others := [name for name in names if not name.endswith(".safetensors")]:
            raise ValueError(f"the index names {others[0]!r}, which is not a safetensors file")
        return {k: v for name in sorted(names) for k, v in load_file(folder / name).items()}
    except Exception as error:  # safetensors raises its own type, which it does not export
        raise InputError(f"cannot read the weights: {error}", where=str(folder)) from error


def write_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write weights on the CPU, floating-point ones as float32."""
    plain = {}
    for name, value in weights.items():
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        plain[name] = value.detach().to("cpu", dtype).contiguous()
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})


def fill(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Load weights into a model.

    Raises:
        InputError: a weight is missing or of another shape.
    """
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise InputError(f"weights and config disagree: {error}", where=str(folder)) from error


# --- tokenizer and card -------------------------------------------------------------------------


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files that are there."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


def write_card(
    folder: Path, task: str, text: str, *, tags: Sequence[str] = (), chat: bool = False
) -> None:
    """Write the model card.

    Args:
        folder: of the model.
        task: the hub's pipeline tag.
        text: the card's text. Default: the folder's name.
        tags: further tags.
        chat: whether prompts are given in the chat format.
    """
    tags = ("headwater", *tags, *([_CHAT_TAG] if chat else []))
    lines = ["---", "library_name: transformers", f"pipeline_tag: {task}", "tags:"]
    lines += [f"- {tag}" for tag in tags]
    body = text.strip() or f"# {folder.name}\n\nMade by Headwater."
    (folder / "README.md").write_text("\n".join([*lines, "---", "", body, ""]))


def is_chat(folder: Path) -> bool:
    """Return whether the model card has the tag of the chat format."""
    card = folder / "README.md"
    return card.exists() and f"\n- {_CHAT_TAG}\n" in card.read_text()
