"""The contract of a stage: its inputs, its output, and how it is called.

A stage is one function under `@stage`:

    class CleanParams(Params):
        sources: tuple[str, ...]

    @stage("clean", output="Documents", version=1)
    def clean(params: CleanParams, inputs: Inputs, out: Path, ctx: Context) -> None: ...

It reads `inputs`, writes files under `out` and reports through `ctx`. It may be killed at any
instant and is then called again with the same `out`. `pipeline.stage_registry` finds a stage by its
name, so that a new stage is one new file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field

from pipeline.context import Context
from pipeline.errors import NotFound, Problem
from pipeline.kind import find_kind
from pipeline.naming import NAME

UnsupportedKeys = Mapping[str, tuple[str, str] | str]
"""Keys of other frameworks, in lower case: for each, our key, dotted as far as it is ambiguous; or
what is wrong with it and what to do instead."""


EXECUTION = "EXECUTION"
"""Mark of a field that decides how the work is done, not its result: `Annotated[int, EXECUTION]`
keeps the field out of the fingerprint."""


class Section(BaseModel):
    """A typed part of a stage's parameters: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    renamed: ClassVar[Mapping[str, str]] = {}
    """Former keys of this section and their new names, for the error message of a former key."""


class Workers(Section):
    """The processes that a stage needs."""

    num: Annotated[int, Field(ge=1)] = 1
    """Number of processes (ranks) of the stage. Default: 1."""
    cpus: Annotated[float, Field(gt=0)] = 1
    """CPU cores, per process. Default: 1."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs, per process. Default: 0."""


class Retries(Section):
    """The number of retries for each class of failure."""

    worker: Annotated[int, Field(ge=0)] = 2
    """Retries after a process died, stalled or ran out of memory. Default: 2."""
    error: Annotated[int, Field(ge=0)] = 0
    """Retries after the code of the stage raised an error. Default: 0."""


class Params(Section):
    """The parameters of a stage in a pipeline file. Subclass it with one field per key."""

    workers: Annotated[Workers, EXECUTION] = Workers()
    """Processes of the stage. Default: one process."""
    retries: Annotated[Retries, EXECUTION] = Retries()
    """Retries after failures. Default: 2 after a lost process, none after an error."""

    unsupported_keys: ClassVar[UnsupportedKeys] = {}
    """Error messages for unknown keys anywhere in the stage's parameters."""

    def externals(self) -> dict[str, str]:
        """Return content digests of what the stage reads from outside the store, by name.

        Raises:
            InputError: a source does not exist or cannot be read.
        """
        return {}

    def changed_externals(self, planned: Mapping[str, str]) -> list[str]:
        """Return the names of the external contents that are not those of the plan, sorted.

        It is called before and after the stage. Override it where the stage reads what was planned
        whatever a name refers to now (a commit).

        Args:
            planned: the result of `externals` when the run was planned.
        """
        now = self.externals()
        return sorted(key for key in {*planned, *now} if planned.get(key) != now.get(key))

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield what cannot work, alone or together with the stages upstream.

        Args:
            upstream: the parameters of each input's producer, by edge: those of a list edge as
                `name[0]`, `name[1]`…, those further up as `tokens.tokenizer`. An input from the
                store has the defaults of `Params`.
        """
        yield from ()

    def estimate_rows(self, upstream: Mapping[str, Params]) -> Sequence[Mapping[str, Any]]:
        """Return the rows of a table of the stage's own in a plan: name, value, unit (count, bytes,
        seconds or share), parts by label, and note."""
        return ()

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """Return the estimated cost: any of parameters, tokens, flops, memory_bytes, disk_bytes
        and seconds."""
        return {}


@dataclass(frozen=True)
class Input:
    """The type of an edge: the accepted kinds, and whether it is optional or a list."""

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


class Inputs(dict[str, Any]):
    """The artifacts that a stage reads, by edge: one, or a tuple on a list edge."""

    def path(self, name: str) -> Path:
        """Return the folder of the one artifact on this edge."""
        return Path(self[name].path)

    def paths(self, name: str) -> list[Path]:
        """Return the folders on a list edge in the order of the pipeline file; empty if absent."""
        found = self.get(name, ())
        artifacts = found if isinstance(found, Sequence) else (found,)
        return [Path(artifact.path) for artifact in artifacts]

    def get_path(self, name: str) -> Path | None:
        """Return the folder of an optional edge, or None."""
        return self.path(name) if name in self else None


RunFunction = Callable[[Any, Inputs, Path, Context], None]
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
    metrics: Mapping[str, str] | None = None

    registry: ClassVar[dict[str, Stage]] = {}

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.run) or "").split("\n", 1)[0]


def stage(
    uses: str,
    *,
    output: str,
    version: int,
    inputs: Mapping[str, str | Input] | None = None,
    metrics: Mapping[str, str] | None = None,
) -> Callable[[F], F]:
    """Register a function as the stage `uses`.

    Args:
        uses: the name in pipeline files; its part before the first dot is the module's name.
        output: the kind of the artifact that it produces.
        version: raise it whenever the same inputs give other bytes than before.
        inputs: the kind of each edge; see `Input.parse` for the short forms.
        metrics: the meaning of each metric that it may report, by name or pattern (`left_out_*`).
            Default: not declared, and gates on it are checked only after the run.

    Raises:
        TypeError: the declaration would go wrong silently when the stage is used, or names a kind
            that is not registered.
    """

    def register(run: F) -> F:
        params = get_type_hints(run, localns={"Inputs": Inputs, "Context": object})["params"]
        typed = {name: Input.parse(declared) for name, declared in (inputs or {}).items()}
        if not NAME.fullmatch(uses):
            raise TypeError(f"stage {uses!r}: a name matches {NAME.pattern}")
        for name in (set(typed) | {"uses"}) & set(params.model_fields):
            raise TypeError(f"stage {uses}: {name!r} is both a parameter and an input or keyword")
        for kind in (output, *(kind for edge in typed.values() for kind in edge.kinds)):
            try:
                find_kind(kind, import_stages=False)
            except NotFound as error:
                raise TypeError(f"stage {uses}: {error.message} ({error.remedy})") from None
        _check_section(uses, params)
        Stage.registry[uses] = Stage(uses, run, params, output, version, typed, metrics)
        return run

    return register


def execution_fields(section: type[BaseModel]) -> frozenset[str]:
    """Return the fields that are marked EXECUTION: they never enter a fingerprint."""
    return frozenset(n for n, i in section.model_fields.items() if EXECUTION in i.metadata)


def nested_sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that a field of that type can hold, directly or in lists and unions."""
    parts = _nested_types(annotation)
    yield from (part for part in parts if isinstance(part, type) and issubclass(part, BaseModel))


def _check_section(uses: str, section: type[BaseModel]) -> None:
    for name, info in section.model_fields.items():
        field = f"stage {uses}: {section.__name__}.{name}"
        for inner in _nested_types(info.annotation):
            if EXECUTION in getattr(inner, "__metadata__", ()):
                raise TypeError(f"{field}: EXECUTION marks a whole field: Annotated[…, EXECUTION]")
            if isinstance(inner, type) and issubclass(inner, PurePath):
                raise TypeError(f"{field}: declare a path as `str`: pipeline files hold text")
        for nested in nested_sections(info.annotation):
            _check_section(uses, nested)


def _nested_types(annotation: Any) -> Iterator[Any]:
    """Yield a type and every type inside it."""
    yield annotation
    for argument in get_args(annotation):
        yield from _nested_types(argument)
