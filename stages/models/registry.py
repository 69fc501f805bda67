"""The registry of model families: one entry holds everything that other code needs of a family.

    register_family(
        ModelFamily("gpt2", capabilities, section=GPT2Section, build=..., conversion=...)
    )

The families of this package register in the `__init__` of their folder. A package outside the tree
registers its own in a module that it names under the entry-point group `headwater.plugins`: one
file with a section (`stages.models.model_params`), a config
(`stages.models.language_model_config`), a model (`stages.models.language_model`) and a conversion.
Such a module imports no torch at import, because `headwater plan` loads it: `build` and
`conversion` import it when they are called.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol

from pydantic import BeforeValidator, Field

from pipeline.errors import InputError
from pipeline.plugins import load_plugins

if TYPE_CHECKING:
    from pipeline.stage import Section
    from stages.models.weight_table import WeightEntry

BUILT_IN = ("stages.models.gpt2", "stages.models.llama", "stages.models.clip")
"""The packages whose import registers the families of this tree."""

Capability = Literal["causal", "kv_cache", "scalar_head", "experts", "contrastive"]
"""`causal`: a language model, trained on and sampling next tokens. `kv_cache`: generates with
cached keys and values. `scalar_head`: its body can be a reward model or critic. `experts`: has
mixture-of-experts layers. `contrastive`: embeds images and captions."""


class Conversion(Protocol):
    """The conversion of a family's models from and to the folders of `transformers`."""

    body: str
    """Prefix of the stored tensors, without the head."""
    ignored: tuple[str, ...]
    """Suffixes of stored tensors that are not weights."""

    def config_json(self, config: Any) -> dict[str, Any]:
        """Return the `config.json` of `transformers` without token ids.

        Raises:
            InputError: `transformers` has no such model.
        """

    def read_config(self, raw: Mapping[str, Any], where: str, dropout: float = 0.0) -> Any:
        """Return the config that a `config.json` describes.

        Raises:
            InputError: it describes a model that this family cannot compute.
            KeyError, ValueError: it lacks a size, or its sizes do not fit each other.
        """

    def weight_table(self, config: Any) -> list[WeightEntry]:
        """Return the correspondence of weights, which is read in both directions."""


class HFClasses(NamedTuple):
    """The classes of `transformers` that load a folder of some type; none for Headwater's types."""

    causal_lm: str | None = None
    sequence_classification: str | None = None
    base: str | None = None
    """The class of a model that is not a language model."""


@dataclass(frozen=True)
class ModelFamily:
    """One family of models."""

    name: str
    capabilities: frozenset[Capability]
    section: type[Section]
    """The `model:` section of a pipeline file."""
    build: Callable[[Any], Any]
    """Builds a model with fresh weights, drawn from torch's global generator, from its config."""
    conversion: Callable[[], Conversion]
    """Loads the conversion from and to `transformers`."""
    hf_types: Mapping[str, HFClasses]
    """The `model_type` of each folder that the conversion reads, with the classes of
    `transformers` that load it."""
    smoke_test: Callable[[Path], str] | None = None
    """Loads a folder, uses the model once and returns a line about it. Default: a language model's
    test (`stages.models.smoke_test`)."""
    upcycle: Callable[[dict[str, Any], Any], dict[str, Any]] | None = None
    """Turns the weights of a dense model into those of one with experts."""


DEFAULT_FAMILY = "gpt2"
_FAMILIES: dict[str, ModelFamily] = {}


def register_family(family: ModelFamily) -> ModelFamily:
    """Add a family to the registry and return it.

    Raises:
        ValueError: another family has its name.
    """
    known = _FAMILIES.setdefault(family.name, family)
    if known != family:
        raise ValueError(f"two model families are named {family.name!r}")
    return family


def families() -> Mapping[str, ModelFamily]:
    """Return all families by name, sorted, those of other packages included."""
    for package in BUILT_IN:
        importlib.import_module(package)
    load_plugins()
    return dict(sorted(_FAMILIES.items()))


def find_family(config: Any) -> ModelFamily:
    """Return the family of a model's config.

    Raises:
        KeyError: no family has the name that the config gives.
    """
    return families()[config.family]


def find_family_of_folder(
    raw: Mapping[str, Any], where: Path, needs: Capability | None = None
) -> ModelFamily:
    """Return the family that reads a model folder.

    Args:
        raw: the folder's `config.json`.
        where: the folder, for the message.
        needs: what the model must be able to do. Default: nothing in particular.

    Raises:
        InputError: no family with that capability reads models of that type.
    """
    kind, types = raw.get("model_type"), []
    for family in families().values():
        if needs is None or needs in family.capabilities:
            if kind in family.hf_types:
                return family
            types += [name for name in family.hf_types if name not in types]
    raise InputError(
        f"cannot read models of type {kind!r}",
        where=str(where),
        remedy=f"give a folder of model_type {', '.join(types[:-1])} or {types[-1]}",
    )


def build_model(config: Any) -> Any:
    """Return a model with fresh weights, drawn from torch's global generator."""
    return find_family(config).build(config)


@cache
def language_model_section() -> Any:
    """Return the type of `model:` in a pipeline file: the union of the sections of all language
    models, discriminated by `family`, whose default is `DEFAULT_FAMILY`."""
    sections: Iterator[Any] = (
        family.section for family in families().values() if "causal" in family.capabilities
    )

    def add_default_family(section: Any) -> Any:
        return {"family": DEFAULT_FAMILY, **section} if isinstance(section, dict) else section

    return Annotated[
        reduce(or_, sections), Field(discriminator="family"), BeforeValidator(add_default_family)
    ]
