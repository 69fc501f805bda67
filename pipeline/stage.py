"""The contract of a stage: what it takes, what it makes, and how it is called.

A stage is one function under `@stage`:

    class CleanParams(Params):
        sources: tuple[str, ...]

    @stage("clean", output="Documents", version=1)
    def clean(params: CleanParams, inputs: Inputs, out: Path, ctx: Context) -> None: ...

It reads `inputs`, writes files under `out`, reports through `ctx`, may be killed at any
instant and is then called again with the same `out`. `uses: a.b` in a pipeline file names the
stage `a.b`, which lives in the module `a` of a package listed under the entry-point group
`headwater.stages`; a new stage is one new file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import Problem
from pipeline.naming import NAME

if TYPE_CHECKING:
    from pipeline.context import Context
    from pipeline.storage.artifact import Artifact

UnsupportedKeys = Mapping[str, tuple[str, str]]
"""Keys, in lower case, that people know from elsewhere and that nothing here answers to: what is
wrong with each, and what to do instead."""


class _Execution:
    """Marks a field that says how the work is done, not what it is: it never enters identity."""

    def __repr__(self) -> str:
        return "EXECUTION"


EXECUTION = _Execution()


class Section(BaseModel):
    """A typed part of a stage's parameters: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    renamed: ClassVar[Mapping[str, str]] = {}
    """Former keys of this section and their new names, for the error message of a former key."""


class Workers(Section):
    """The processes that a stage asks for."""

    num: Annotated[int, Field(ge=1)] = 1
    """Processes (ranks) of the stage."""
    cpus: Annotated[float, Field(gt=0)] = 1
    """CPU cores of each."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs of each."""


class Retries(Section):
    """How often each class of failure is tried again."""

    worker: Annotated[int, Field(ge=0)] = 2
    """After a worker died, got stuck or ran out of memory."""
    error: Annotated[int, Field(ge=0)] = 0
    """After the stage's own code raised an error."""


class Params(Section):
    """What a pipeline file may say of a stage. Subclass it, one field a key."""

    workers: Annotated[Workers, EXECUTION] = Workers()
    """The processes the stage runs on."""
    retries: Annotated[Retries, EXECUTION] = Retries()
    """How often failures are tried again."""

    unsupported_keys: ClassVar[UnsupportedKeys] = {}
    """What is said of an unknown key, wherever it stands in the stage's parameters."""

    def externals(self) -> dict[str, str]:
        """Content digests of what the stage reads from outside the store, by name.

        Raises:
            InputError: a source does not exist or cannot be read.
        """
        return {}

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield what cannot work, here or together with the stages that feed this one.

        `upstream` maps an input's name to its producer's parameters: those of a list edge as
        `name[0]`, `name[1]`…, those further up as `tokens.tokenizer`. An input from the store has
        those of no stage in particular.
        """
        yield from ()

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """What the stage will cost: any of parameters, tokens, flops, memory_bytes,
        disk_bytes and seconds."""
        return {}


@dataclass(frozen=True)
class Input:
    """An edge's type: the kinds that it takes, whether it may be left out or be a list."""

    kinds: tuple[str, ...]
    optional: bool = False
    many: bool = False

    @classmethod
    def parse(cls, declared: str | Input) -> Input:
        """Read the short form: a kind, `Kind?` (optional), `Kind*` (a list), `A|B` (either)."""
        if isinstance(declared, Input):
            return declared
        bare = declared.rstrip("?*")
        flags = declared[len(bare) :]
        return cls(tuple(bare.split("|")), optional="?" in flags, many="*" in flags)

    def __str__(self) -> str:
        kinds = " or ".join(self.kinds)
        return kinds + (" list" if self.many else "") + (" (optional)" if self.optional else "")


class Inputs(Mapping[str, "Artifact | tuple[Artifact, ...]"]):
    """The artifacts that a stage reads, by the name of the edge."""

    def __init__(self, artifacts: Mapping[str, Artifact | Sequence[Artifact]]) -> None:
        self._artifacts = dict(artifacts)

    def __getitem__(self, name: str) -> Any:
        return self._artifacts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._artifacts)

    def __len__(self) -> int:
        return len(self._artifacts)

    def path(self, name: str) -> Path:
        """The folder of the one artifact on this edge."""
        return Path(self._artifacts[name].path)  # type: ignore[union-attr]

    def paths(self, name: str) -> list[Path]:
        """The folders on a list edge, in the order of the pipeline file; empty if left out."""
        found = self._artifacts.get(name, ())
        artifacts = found if isinstance(found, Sequence) else (found,)
        return [Path(artifact.path) for artifact in artifacts]

    def get_path(self, name: str) -> Path | None:
        """The folder of an optional edge, or None."""
        return self.path(name) if name in self._artifacts else None


RunFunction = Callable[[Any, Inputs, Path, "Context"], None]
F = TypeVar("F", bound=RunFunction)


@dataclass(frozen=True)
class Stage:
    """A registered stage: its name, types and function."""

    uses: str
    run: RunFunction
    params: type[Params]
    output: str
    version: int
    inputs: Mapping[str, Input] = field(default_factory=dict)

    registry: ClassVar[dict[str, Stage]] = {}

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.run) or "").split("\n", 1)[0]


def stage(
    uses: str, *, output: str, version: int, inputs: Mapping[str, str | Input] | None = None
) -> Callable[[F], F]:
    """Register a function as the stage `uses`.

    Args:
        uses: the name in pipeline files; its part before the first dot is the module's name.
        output: the kind of artifact that it makes.
        version: raise it whenever the same inputs would now give other bytes.
        inputs: edge name to kind; see `Input.parse` for the short forms.
    """

    def register(run: F) -> F:
        params = get_type_hints(run, localns={"Inputs": Inputs, "Context": object})["params"]
        typed = {name: Input.parse(declared) for name, declared in (inputs or {}).items()}
        _check_declaration(uses, params, typed)
        Stage.registry[uses] = Stage(uses, run, params, output, version, typed)
        return run

    return register


def execution_fields(section: type[BaseModel]) -> frozenset[str]:
    """The fields that are marked EXECUTION: they never enter a fingerprint."""
    return frozenset(n for n, i in section.model_fields.items() if _marks_execution(i.metadata))


def nested_sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field of that type can hold, directly or in lists and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from nested_sections(argument)


def _marks_execution(metadata: Iterable[Any]) -> bool:
    return any(isinstance(mark, _Execution) for mark in metadata)


def _check_declaration(uses: str, params: type[Params], inputs: Mapping[str, Input]) -> None:
    """Refuse, when the stage is defined, what would go wrong quietly when it is used."""
    if not NAME.fullmatch(uses):
        raise TypeError(f"stage {uses!r}: a name matches {NAME.pattern}")
    for name in (set(inputs) | {"uses"}) & set(params.model_fields):
        raise TypeError(f"stage {uses}: {name!r} is both a parameter and a word of the file")
    _check_section(uses, params)


def _check_section(uses: str, section: type[BaseModel]) -> None:
    for name, info in section.model_fields.items():
        field = f"stage {uses}: {section.__name__}.{name}"
        for inner in _parts(info.annotation):
            if _marks_execution(getattr(inner, "__metadata__", ())):
                raise TypeError(f"{field}: EXECUTION marks a whole field: Annotated[…, EXECUTION]")
            if isinstance(inner, type) and issubclass(inner, PurePath):
                raise TypeError(f"{field}: write a path as `str`: pipeline files hold text")
        for nested in nested_sections(info.annotation):
            _check_section(uses, nested)


def _parts(annotation: Any) -> Iterator[Any]:
    """A type and every type inside it."""
    yield annotation
    if get_origin(annotation) is not None:
        for argument in get_args(annotation):
            yield from _parts(argument)
