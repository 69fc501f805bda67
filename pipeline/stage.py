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

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import NotFound, Problem

if TYPE_CHECKING:
    from pipeline.artifact import Artifact
    from pipeline.context import Context

ENTRY_POINT_GROUP = "headwater.stages"


class _Execution:
    """Marks a field that says how the work is done, not what it is: it never enters identity."""

    def __repr__(self) -> str:
        return "EXECUTION"


EXECUTION = _Execution()


class Section(BaseModel):
    """A typed part of a stage's parameters: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


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

    def externals(self) -> dict[str, str]:
        """Content digests of what the stage reads from outside the store, by name.

        Raises:
            InputError: a source does not exist or cannot be read.
        """
        return {}

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield what cannot work, here or together with the stages that feed this one.

        `upstream` maps an input's name to its producer's parameters, where they are known.
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
    def of(cls, declared: str | Input) -> Input:
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
        return [
            Path(artifact.path) for artifact in (found if isinstance(found, Sequence) else (found,))
        ]

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
        inputs: edge name to kind; see `Input.of` for the short forms.
    """

    def register(run: F) -> F:
        params = get_type_hints(run, localns={"Inputs": Inputs, "Context": object})["params"]
        typed = {name: Input.of(declared) for name, declared in (inputs or {}).items()}
        Stage.registry[uses] = Stage(uses, run, params, output, version, typed)
        return run

    return register


def find_stage(uses: str) -> Stage:
    """The stage of that name.

    Raises:
        NotFound: no package offers it; the message names the nearest one.
    """
    module = uses.split(".", 1)[0]
    for package in stage_packages():
        try:
            importlib.import_module(f"{package}.{module}")
        except ModuleNotFoundError as error:
            if error.name != f"{package}.{module}":
                raise
    if uses in Stage.registry:
        return Stage.registry[uses]
    near = difflib.get_close_matches(uses, [known.uses for known in all_stages()], n=1)
    remedy = f"did you mean {near[0]!r}?" if near else "`headwater stages` lists them"
    raise NotFound(f"unknown stage {uses!r}", remedy=remedy)


def all_stages() -> Iterable[Stage]:
    """Every stage of every package, sorted by name."""
    for package in stage_packages():
        root = importlib.import_module(package)
        for info in pkgutil.iter_modules(root.__path__):
            if not info.ispkg:
                importlib.import_module(f"{package}.{info.name}")
    return [Stage.registry[uses] for uses in sorted(Stage.registry)]


@cache
def stage_packages() -> tuple[str, ...]:
    """The packages that may hold stages, in a fixed order, our own first."""
    found = {point.value for point in entry_points(group=ENTRY_POINT_GROUP)} | {"stages"}
    return tuple(sorted(found, key=lambda package: (package != "stages", package)))
