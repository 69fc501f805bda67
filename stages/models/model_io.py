"""Loading and saving of language models and reward models, of every registered family.

    config.json  model.safetensors  generation_config.json  README.md  + the tokenizer's files

is what `transformers` and everything built on it (lm-eval, vLLM, MLflow) loads. A family's
conversion (`stages.models.registry`) maps its weights. A folder has no muP: its weights hold the
factors (`stages.models.mup`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import InputError
from stages.models.hf_io import (
    DEFAULT_IDS,
    SpecialIds,
    copy_tokenizer,
    fill,
    read_config,
    read_weights,
    token_id_fields,
    update_tokenizer_config,
    write_card,
    write_generation_config,
    write_json,
    write_weights,
)
from stages.models.language_model import LanguageModel
from stages.models.language_model_config import LanguageModelConfig
from stages.models.mup import fold_mup_scales
from stages.models.registry import find_family, find_family_of_folder
from stages.models.reward_head import RewardModel
from stages.models.weight_table import export_weights, import_weights

_SCORE = "score.weight"
_BIAS_NOTE = """

The score is the logit plus {bias:g}, the `score_bias` of `config.json`. `transformers` has no such
field: add the number to its logits."""


def save_language_model(
    model: LanguageModel,
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
        folder: created if missing.
        tokenizer_folder: where the tokenizer's files are copied from, and of a model folder the
            generation settings and all ends of texts.
        card: the text of the model card.
        chat: whether prompts are given in the chat format; the card then has its tag.
        ids: the ids of pad, bos and eos.
    """
    family = find_family(model.config)
    conversion = family.conversion()
    config = conversion.config_json(model.config)
    if name := family.hf_types[config["model_type"]].causal_lm:
        config["architectures"] = [name]
    table = conversion.weight_table(model.config)
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer_folder is not None:
        copy_tokenizer(tokenizer_folder, folder)
    write_weights(folder, export_weights(fold_mup_scales(model.state_dict(), model), table))
    write_json(folder / "config.json", config | token_id_fields(ids, tokenizer_folder))
    write_generation_config(folder, ids, tokenizer_folder)
    write_card(folder, "text-generation", card, chat=chat)


def load_language_model(
    folder: Path, *, dropout: float = 0.0, residual_dropout: float | None = None
) -> LanguageModel:
    """Return the language model of a folder, of Headwater or of the hub, in evaluation mode.

    Args:
        folder: of the model.
        dropout: rate in training.
        residual_dropout: rate of the residual branches alone. Default: `dropout`.

    Raises:
        InputError: no registered family reads the folder, weights are missing or of another shape,
            or the family drops nothing of the residual branches apart.
    """
    raw = read_config(folder)
    family = find_family_of_folder(raw, folder, "causal")
    conversion = family.conversion()
    config = _read_config(conversion, raw, folder, dropout)
    if residual_dropout is not None:
        config = _with_residual_dropout(config, residual_dropout)
    model: LanguageModel = family.build(config)
    fill(model, _read_weights(conversion, config, read_weights(folder), folder), folder)
    return model.eval()


def read_model_config(folder: Path) -> LanguageModelConfig:
    """Return the shape of the language model of a folder, or of the body of a reward model.

    Raises:
        InputError: no registered family reads the folder.
    """
    raw = read_config(folder)
    conversion = find_family_of_folder(raw, folder, "causal").conversion()
    config: LanguageModelConfig = _read_config(conversion, raw, folder, 0.0)
    return config


def save_reward_model(
    model: RewardModel,
    folder: Path,
    tokenizer_folder: Path | None = None,
    *,
    card: str = "",
    ids: SpecialIds = DEFAULT_IDS,
) -> None:
    """Write a folder that `AutoModelForSequenceClassification` loads: one label, no bias.

    It reads the score at the last token that is not padding, as the reward model here. The
    tokenizer pads on the right: on the left, a classifier with learned positions would shift
    those of a text by its padding. A `score_bias` other than 0 is kept in config.json, where
    `transformers` does not read it: the card instructs to add it to the logits. Arguments as in
    `save_language_model`.
    """
    family = find_family(model.body.config)
    conversion = family.conversion()
    config = conversion.config_json(model.body.config)
    if name := family.hf_types[config["model_type"]].sequence_classification:
        config["architectures"] = [name]
    config |= {
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
        "problem_type": "regression",
    }
    if model.score_bias:
        config["score_bias"] = model.score_bias
        card += _BIAS_NOTE.format(bias=model.score_bias)
    table = conversion.weight_table(model.body.config)
    weights = export_weights(model.body.state_dict(), table) | {_SCORE: model.score.weight}
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer_folder is not None:
        copy_tokenizer(tokenizer_folder, folder)
        update_tokenizer_config(folder, padding_side="right")
    write_weights(folder, weights)
    write_json(folder / "config.json", config | token_id_fields(ids))
    write_card(folder, "text-classification", card, tags=["reward-model"])


def load_reward_model(folder: Path, *, dropout: float = 0.0) -> RewardModel:
    """Return the reward model or critic of a folder with one label, in evaluation mode.

    Raises:
        InputError: the folder holds no such model.
    """
    raw = read_config(folder)
    family = find_family_of_folder(raw, folder, "scalar_head")
    conversion = family.conversion()
    config = _read_config(conversion, raw, folder, dropout)
    weights = read_weights(folder)
    score = weights.pop(_SCORE, None)
    if score is None or score.shape[0] != 1:
        raise InputError(
            "not a reward model: there is no score head of one label", where=str(folder)
        )
    model = RewardModel(family.build(config), score_bias=raw.get("score_bias", 0.0))
    body = _read_weights(conversion, model.body.config, weights, folder)
    fill(model, {f"body.{name}": value for name, value in body.items()} | {_SCORE: score}, folder)
    return model.eval()


def _read_config(conversion: Any, raw: dict[str, Any], folder: Path, dropout: float) -> Any:
    try:
        return conversion.read_config(raw, str(folder), dropout)
    except (KeyError, ValueError) as error:
        raise InputError(f"the config lacks something: {error}", where=str(folder)) from error


def _with_residual_dropout(config: Any, rate: float) -> Any:
    if not hasattr(config, "residual_dropout"):
        raise InputError(
            "the family has no dropout of the residual branches alone",
            where="residual_dropout",
            remedy="set dropout",
        )
    return replace(config, residual_dropout=rate)


def _read_weights(
    conversion: Any, config: Any, stored: dict[str, Tensor], folder: Path
) -> dict[str, Tensor]:
    """Return the weights of stored tensors; files of a body alone lack the prefix of the body."""
    if not any(name.startswith(conversion.body) for name in stored):
        stored = {conversion.body + name: value for name, value in stored.items()}
    try:
        return import_weights(stored, conversion.weight_table(config), conversion.ignored)
    except ValueError as error:
        raise InputError(f"weights and config disagree: {error}", where=str(folder)) from error
