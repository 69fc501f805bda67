"""The initial weights of a training: drawn, or read from a folder."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import InputError
from stages.models.language_model import LanguageModel
from stages.models.language_model_config import LanguageModelConfig
from stages.models.model_io import load_language_model
from stages.models.mup import unfold_mup_scales
from stages.models.registry import find_family


def initial_model(config: LanguageModelConfig, folder: Path | None) -> LanguageModel:
    """Return a model of this shape: with fresh weights, or those of a folder, whose dense
    feed-forward layers may become experts.

    Raises:
        InputError: the folder's model is of another shape.
    """
    family = find_family(config)
    model: LanguageModel = family.build(config)
    if folder is None:
        return model
    given = load_language_model(folder)
    upcycling = family.upcycle is not None and config.can_upcycle(given.config)
    _check_compatible(config, given.config, folder, upcycling=upcycling)
    weights = given.state_dict()
    if family.upcycle is not None and upcycling:
        weights = family.upcycle(weights, config)
    model.load_state_dict(unfold_mup_scales(weights, model))
    return model


def _check_compatible(
    wanted: LanguageModelConfig, given: LanguageModelConfig, folder: Path, *, upcycling: bool
) -> None:
    wanted_fields, given_fields = dict(wanted.architecture_fields), dict(given.architecture_fields)
    if upcycling:
        wanted_fields["experts"] = None
    if wanted_fields.keys() != given_fields.keys():
        wanted_fields, given_fields = (
            {"family": fields["family"]} for fields in (wanted_fields, given_fields)
        )
    differences = [
        f"{key}: {given_fields[key]}, not {wanted_fields[key]}"
        for key in wanted_fields
        if wanted_fields[key] != given_fields[key]
    ]
    if differences:
        raise InputError(
            f"the weights are of another shape: {'; '.join(differences)}",
            where=str(folder),
            remedy="give the same shape under `model`, or leave `init_from` out",
        )
