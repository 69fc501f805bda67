"""Registry of pretraining objectives: the sections that `objective:` of stage `pretrain` accepts.

An objective is one file that holds its parameters and its class, here or in another package (see
`pipeline.plugins`):

    @register_objective
    class ReversedParams(ObjectiveParams):
        type: Literal["reversed"] = "reversed"

        def build(self, task: PretrainingTask) -> SupervisedObjective:
            return Reversed(**vars(task))

No torch is imported here, because `headwater plan` reads the sections.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, Union, get_args

from pydantic import BeforeValidator, Field

from pipeline.errors import Problem
from pipeline.panels import Panel
from pipeline.plugins import load_plugins
from pipeline.stage import Section

if TYPE_CHECKING:
    from stages.data.token_dataset import TokenDataset
    from stages.models.language_model_config import LanguageModelConfig
    from stages.models.registry import ModelFamily
    from stages.training.supervised import SupervisedObjective

DEFAULT = "causal_lm"
BUILT_IN = ("stages.objectives.causal_lm",)
"""Modules of this package that register an objective."""


@dataclass
class PretrainingTask:
    """The input of an objective from stage `pretrain`: model, data, and execution options."""

    config: LanguageModelConfig
    corpus: TokenDataset
    tokenizer_folder: Path
    init_from: Path | None = None
    """Model folder whose weights training starts from. Default: random weights."""
    mask_documents: bool = False
    activation_checkpointing: bool = False
    compile: bool = False
    card: str = ""
    """Text of the model card."""


class ObjectiveParams(Section):
    """Parameters of a pretraining objective: a subclass adds its own, under a `type` of its own."""

    type: str
    """Name of the objective."""
    capabilities: ClassVar[frozenset[str]] = frozenset({"causal"})
    """Capabilities of a model family that the objective needs."""
    special_tokens: ClassVar[tuple[str, ...]] = ()
    """Tokens that the tokenizer must hold, such as `<mask>`."""

    def check(self, family: ModelFamily) -> Iterator[Problem]:
        """Yield what the objective needs and the model family cannot do."""
        if missing := sorted(self.capabilities - family.capabilities):
            yield Problem(
                "objective.type",
                f"{self.type} needs a model family with {', '.join(missing)}",
                f"select another model.family than {family.name}",
            )

    def build(self, task: PretrainingTask) -> SupervisedObjective:
        """Return the objective."""
        raise NotImplementedError

    def panels(self, config: LanguageModelConfig) -> Iterator[Panel]:
        """Yield the report panels of the metrics that only this objective has."""
        yield from ()


S = TypeVar("S", bound=ObjectiveParams)
_SECTIONS: dict[str, type[ObjectiveParams]] = {}


def register_objective(section: type[S]) -> type[S]:
    """Register the parameters of an objective under the value of its `type`.

    Raises:
        TypeError: `type` is not a Literal of one name, or the name is taken.
    """
    names = get_args(section.model_fields["type"].annotation)
    if len(names) != 1:
        raise TypeError(f"{section.__name__}.type: declare a Literal of one name")
    if _SECTIONS.setdefault(names[0], section) is not section:
        raise TypeError(f"objective {names[0]!r} is registered twice")
    return section


def objective_sections() -> Mapping[str, type[ObjectiveParams]]:
    """Return the sections of all objectives by name, those of plugins included."""
    for module in BUILT_IN:
        import_module(module)
    load_plugins()
    return _SECTIONS


def objective_union() -> Any:
    """Return the type of a field `objective:`: the section of any objective, selected by `type`,
    which may be left out for the default."""
    sections = tuple(objective_sections().values())
    union: Any = sections[0]
    if len(sections) > 1:
        union = Annotated[Union[sections], Field(discriminator="type")]  # noqa: UP007
    return Annotated[
        union,
        BeforeValidator(lambda v: {"type": DEFAULT, **v} if isinstance(v, Mapping) else v),
    ]
