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
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.errors import InputError
from stages.models import safetensors_io

CHAT_TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja")
TOKENIZER_FILES = (
    *("tokenizer.model", "tokenizer.json", "tokenizer_config.json"),
    *CHAT_TEMPLATES,
)
"""Names and patterns of the files that encode texts and chats."""
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
        return _read_object(folder / "config.json")
    except (OSError, ValueError) as error:
        raise InputError(f"not a model folder: {error}", where=str(folder)) from error


def _read_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        OSError, ValueError: the file is missing, or not JSON, or not an object.
    """
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return found


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
    """Return one id: of several ends the first counts."""
    return next(iter(_all_ids(value)), None)


def _all_ids(value: Any) -> list[int]:
    """Return the ids of a field of a config: one id or several; -1 is a former way to write none.

    Floating-point numbers and texts are not ids.
    """
    listed = value if isinstance(value, list) else [value]
    return [i for i in listed if isinstance(i, int) and i >= 0]


def token_id_fields(
    ids: SpecialIds, source: Path | None = None
) -> dict[str, int | list[int] | None]:
    """Return the fields of a config for token ids; a missing field would mean the default of the
    family in `transformers`, so None is written too.

    Args:
        ids: the special ids; of several ends the one that ends documents.
        source: model folder whose other ends are kept. Default: none.
    """
    ends = [] if ids.eos is None else [ids.eos]
    for config in (_model_config(source), generation_config(source)):
        ends += [end for end in _all_ids(config.get("eos_token_id")) if end not in ends]
    eos = ends if len(ends) > 1 else next(iter(ends), None)
    return {"bos_token_id": ids.bos, "eos_token_id": eos, "pad_token_id": ids.pad}


def generation_config(folder: Path | None) -> dict[str, Any]:
    """Return the folder's `generation_config.json`; empty if it has no such file.

    Raises:
        InputError: the file is not a JSON object.
    """
    if folder is None or not (path := folder / "generation_config.json").exists():
        return {}
    try:
        return _read_object(path)
    except (OSError, ValueError) as error:
        remedy = "repair or remove the file"
        raise InputError(f"not a config: {error}", where=str(path), remedy=remedy) from error


def write_generation_config(folder: Path, ids: SpecialIds, source: Path | None = None) -> None:
    """Write `generation_config.json`: the settings of the folder that the tokenizer comes from,
    with the token ids that they lack; sampling if that is not a model folder."""
    brought = {key: v for key, v in generation_config(source).items() if v is not None}
    default = {} if _model_config(source) else {"do_sample": True}
    fields = {**token_id_fields(ids, source), **(brought or default)}
    write_json(folder / "generation_config.json", fields)


def _model_config(folder: Path | None) -> dict[str, Any]:
    """Return the folder's `config.json`; empty if it is not a model folder."""
    if folder is None or not (folder / "config.json").exists():
        return {}
    return read_config(folder)


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
    """Write weights on the CPU, floating-point ones as float32.

    The file has the mode of its neighbours: that of the safetensors library would be readable by
    its owner alone.
    """
    plain = {}
    for name, value in sorted(weights.items()):
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        plain[name] = value.detach().to("cpu", dtype)
    safetensors_io.write(folder / "model.safetensors", plain)


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
    """Copy the tokenizer's files that are there, its chat templates included."""
    for path in (path for pattern in TOKENIZER_FILES for path in source.glob(pattern)):
        target = folder / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)


def update_tokenizer_config(folder: Path, **fields: Any) -> None:
    """Set fields of the folder's `tokenizer_config.json`, if there is one."""
    path = folder / "tokenizer_config.json"
    if path.exists():
        write_json(path, {**_read_object(path), **fields})


def write_chat_format(folder: Path, template: str, ends: Sequence[int]) -> None:
    """Write a chat template where any version of `transformers` reads it, and add ends of a text
    to the configs. Further templates are removed: `transformers` would take one of them for chats
    with tools."""
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    update_tokenizer_config(folder, chat_template=template)
    for path in (folder / "config.json", folder / "generation_config.json"):
        if path.exists():
            config = _read_object(path)
            known = _all_ids(config.get("eos_token_id"))
            every = [*known, *(end for end in ends if end not in known)]
            write_json(path, {**config, "eos_token_id": every if len(every) > 1 else every[0]})


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
