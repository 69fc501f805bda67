"""Model folders: what `transformers` and everything built on it (lm-eval, vLLM, MLflow) loads.

    config.json  model.safetensors  generation_config.json  README.md  + the tokenizer's files

The weights of GPT-2 in `transformers` are those of `stages.models.gpt2.modeling_gpt2` under `transformer.`, with
the four projections of a block stored input-major (its Conv1D); for the modern decoder see
`stages.models.llama.conversion_llama`. A folder says nothing of muP: its weights hold the factors
(`stages.models.mup`). JSON is written by hand, with sorted keys, so that equal weights give equal
bytes whatever library version wrote them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import InputError
from stages.models.gpt2.modeling_gpt2 import GPT, GPTConfig
from stages.models.hf_io import read_config, read_weights
from stages.models.llama import conversion_llama
from stages.models.llama.modeling_llama import Llama
from stages.models.mup import fold_mup_scales
from stages.models.reward_head import RewardModel

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")
_CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
_BUFFERS = (".attn.bias", ".attn.masked_bias", "lm_head.weight")
_CHAT_TAG = "conversational"
_ONLY = {
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
"""Of a GPT-2's config, what ours computes."""


class SpecialIds(NamedTuple):
    """Token ids that generation and scoring need to know; None is written as none."""

    pad: int | None = 0
    bos: int | None = 2
    eos: int | None = 3


DEFAULT_IDS = SpecialIds()


def save_language_model(
    model: GPT | Llama,
    folder: Path,
    tokenizer_folder: Path | None = None,
    *,
    card: str = "",
    chat: bool = False,
    ids: SpecialIds = DEFAULT_IDS,
) -> None:
    """Write a folder that `AutoModelForCausalLM` loads and that gives the same logits.

    Args:
        model: the weights, whole (not sharded), of any floating type; written as float32.
        folder: made if it is not there.
        tokenizer_folder: where the tokenizer's files are copied from.
        card: the text of the model card.
        chat: whether prompts are to be given in the chat format (marked in the card).
        ids: the ids of pad, bos and eos.
    """
    state = fold_mup_scales(model.state_dict(), model.config)
    if isinstance(model, Llama):
        config = {**conversion_llama.config_json(model.config), **_token_ids(ids)}
        parts = conversion_llama.export(state, model.config)
        weights = {name: _plain(value) for name, value in parts.items()}
    else:
        config = {**_config(model.config, ids), "architectures": ["GPT2LMHeadModel"]}
        own = _export(state)
        weights = {f"transformer.{name}": value for name, value in own.items()}
    _save(folder, tokenizer_folder, weights)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {**_token_ids(ids), "do_sample": True})
    _write_card(folder, "text-generation", [_CHAT_TAG] if chat else [], card)


def save_reward_model(
    model: RewardModel,
    folder: Path,
    tokenizer_folder: Path | None = None,
    *,
    card: str = "",
    ids: SpecialIds = DEFAULT_IDS,
) -> None:
    """Write a folder that `AutoModelForSequenceClassification` loads (one label, no bias).

    It reads the score at the last token that is not padding, as we do. Arguments as
    `save_language_model`.
    """
    body = _export(model.body.state_dict())
    weights = {f"transformer.{name}": value for name, value in body.items()}
    weights["score.weight"] = _plain(model.score.weight)
    _save(folder, tokenizer_folder, weights)
    config = {
        **_config(model.body.config, ids),
        "architectures": ["GPT2ForSequenceClassification"],
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
        "problem_type": "regression",
    }
    _write_json(folder / "config.json", config)
    _write_card(folder, "text-classification", ["reward-model"], card)


def load_language_model(folder: Path, *, dropout: float = 0.0) -> GPT | Llama:
    """Read a folder of GPT-2, Llama, Qwen3 or Qwen3-MoE, of ours or of anybody, in evaluation mode.

    Raises:
        InputError: the folder holds another model, or weights are missing or of another shape.
    """
    raw = read_config(folder)
    if raw.get("model_type") in conversion_llama.ARCHITECTURES:
        return _load_decoder(raw, folder, dropout)
    config, weights = _load(folder, dropout)
    model = GPT(config)
    _fill(model, _import(weights), folder)
    return model.eval()


def _load_decoder(raw: Mapping[str, Any], folder: Path, dropout: float) -> Llama:
    try:
        model = Llama(conversion_llama.read_config(raw, str(folder), dropout))
        weights = conversion_llama.collect(read_weights(folder), model.config)
    except (KeyError, ValueError) as error:
        raise InputError(f"config or weights lack something: {error}", where=str(folder)) from error
    _fill(model, weights, folder)
    return model.eval()


def load_reward_model(folder: Path, *, dropout: float = 0.0) -> RewardModel:
    """Read a `GPT2ForSequenceClassification` folder with one label, in evaluation mode.

    Raises:
        InputError: the folder holds no such model.
    """
    config, weights = _load(folder, dropout)
    if "score.weight" not in weights or weights["score.weight"].shape[0] != 1:
        raise InputError(
            "not a reward model: there is no score head of one label", where=str(folder)
        )
    model = RewardModel(GPT(config))
    score = {"score.weight": weights.pop("score.weight")}
    body = {f"body.{name}": value for name, value in _import(weights).items()}
    _fill(model, {**body, **score}, folder)
    return model.eval()


def special_ids(folder: Path) -> SpecialIds:
    """The ids of pad, bos and eos that a model folder's config names; None for one that it has
    not."""
    config = read_config(folder)
    return SpecialIds(
        pad=_one(config.get("pad_token_id")),
        bos=_one(config.get("bos_token_id")),
        eos=_one(config.get("eos_token_id")),
    )


def is_chat(folder: Path) -> bool:
    """Whether the folder's model card says that prompts want the chat format."""
    card = folder / "README.md"
    return card.exists() and f"\n- {_CHAT_TAG}\n" in card.read_text()


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the files of a tokenizer that are there."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


def _config(config: GPTConfig, ids: SpecialIds) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.n_inner,
        "layer_norm_epsilon": config.norm_eps,
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "dtype": "float32",
        **_token_ids(ids),
    }


def _token_ids(ids: SpecialIds) -> dict[str, int | None]:
    """Also those that are none: left out, `transformers` would put the family's own there."""
    return {"bos_token_id": ids.bos, "eos_token_id": ids.eos, "pad_token_id": ids.pad}


def _export(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights as GPT-2 stores them."""
    return {
        name: _plain(value.t() if name.endswith(_CONV1D) else value)
        for name, value in state.items()
    }


def _import(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2's weights as we store them; the hub's own files have no `transformer.` prefix."""
    return {
        name.removeprefix("transformer."): value.t() if name.endswith(_CONV1D) else value
        for name, value in state.items()
        if not name.endswith(_BUFFERS)
    }


def _plain(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float32).contiguous()


def _save(folder: Path, tokenizer_folder: Path | None, weights: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer_folder is not None:
        copy_tokenizer(tokenizer_folder, folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _write_card(folder: Path, task: str, tags: list[str], text: str) -> None:
    lines = ["---", "library_name: transformers", f"pipeline_tag: {task}", "tags:"]
    lines += [f"- {tag}" for tag in ("headwater", *tags)]
    body = text.strip() or f"# {folder.name}\n\nMade by Headwater."
    (folder / "README.md").write_text("\n".join([*lines, "---", "", body, ""]))


def _load(folder: Path, dropout: float) -> tuple[GPTConfig, dict[str, Tensor]]:
    """The config and the raw weights of a GPT-2 folder, whole or in shards."""
    raw = read_config(folder)
    if raw.get("model_type") != "gpt2":
        raise InputError(
            f"cannot read models of type {raw.get('model_type')!r}",
            where=str(folder),
            remedy="give a folder of model_type gpt2, llama, qwen3 or qwen3_moe",
        )
    if raw.get("activation_function", "gelu_new") not in ("gelu_new", "gelu_pytorch_tanh"):
        raise InputError(f"unknown activation {raw['activation_function']!r}", where=str(folder))
    for key, usual in _ONLY.items():
        if raw.get(key, usual) != usual:
            raise InputError(
                f"models with {key} = {raw[key]!r} cannot be read",
                where=str(folder),
                remedy=f"only those with {usual!r} can",
            )
    try:
        config = GPTConfig(
            vocab_size=raw["vocab_size"],
            context_length=raw["n_positions"],
            num_layers=raw["n_layer"],
            hidden_size=raw["n_embd"],
            num_heads=raw["n_head"],
            dropout=dropout,
            n_inner=raw.get("n_inner"),
            norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        )
    except (KeyError, ValueError) as error:
        raise InputError(f"the config lacks something: {error}", where=str(folder)) from error
    return config, read_weights(folder)


def _fill(model: torch.nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise InputError(f"weights and config disagree: {error}", where=str(folder)) from error


def _one(value: Any) -> int | None:
    """Some configs name several eos ids: the first one counts. -1 is an old way to say none."""
    if isinstance(value, list):
        value = value[0] if value else None
    return None if value is None or value < 0 else int(value)
