"""A checked pipeline: its stages with their parameters, the edges between them, the promotion.

`${stage}`, `artifact:<fingerprint>` and `model:<name>@<alias>` are edges, and only keys that the
stage declares as inputs accept them. `${env:NAME}` refers to a secret and is kept as text here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.naming import NAME
from pipeline.stage import Params, Stage

DEFAULT_ALIAS = "champion"

_STAGE_REF = re.compile(r"\$\{([^{}:]*)\}")
_ARTIFACT_REF = re.compile(r"artifact:([0-9a-f]{6,16})")
_MODEL_REF = re.compile(rf"model:({NAME.pattern}?)(?:@([A-Za-z0-9_-]+))?")
_STORED = ""  # the producer of what is in the store already


@dataclass(frozen=True)
class StageRef:
    """The output of another stage of the pipeline."""

    name: str

    def __str__(self) -> str:
        return f"${{{self.name}}}"


@dataclass(frozen=True)
class ArtifactRef:
    """An artifact of the store, by the first 6 to 16 digits of its fingerprint."""

    fingerprint: str

    def __str__(self) -> str:
        return f"artifact:{self.fingerprint}"


@dataclass(frozen=True)
class ModelRef:
    """A registered model, by the alias of a version."""

    model: str
    alias: str = DEFAULT_ALIAS

    def __str__(self) -> str:
        return f"model:{self.model}@{self.alias}"


Ref = StageRef | ArtifactRef | ModelRef


def parse_ref(value: Any) -> Ref | None:
    """Return the reference that an edge's text stands for, or None."""
    if not isinstance(value, str):
        return None
    if match := _STAGE_REF.fullmatch(value):
        return StageRef(match[1])
    if match := _ARTIFACT_REF.fullmatch(value):
        return ArtifactRef(match[1])
    if match := _MODEL_REF.fullmatch(value):
        return ModelRef(match[1], match[2] or DEFAULT_ALIAS)
    return None


@dataclass(frozen=True)
class Node:
    """A stage of a pipeline: its function, its parameters and its inputs."""

    name: str
    uses: str
    stage: Stage
    params: Params
    edges: Mapping[str, tuple[Ref, ...]]
    where: str = field(compare=False)

    @property
    def needs(self) -> tuple[str, ...]:
        """The direct upstream stages, each once."""
        refs = (ref for refs in self.edges.values() for ref in refs)
        return tuple(dict.fromkeys(ref.name for ref in refs if isinstance(ref, StageRef)))


@dataclass(frozen=True)
class Promotion:
    """The model to register at the end of a run, and the gates before it."""

    model: str
    stage: str
    alias: str = DEFAULT_ALIAS
    require: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spec:
    """A pipeline without any problem that can be found before it runs."""

    name: str
    seed: int
    nodes: Mapping[str, Node]
    """In topological order."""
    promote: Promotion | None
    resolved: dict[str, Any]
    """The file after `extends` and overrides, as plain data; `spec_from_resolved` reads it."""
    source: str = field(compare=False)

    def upstream(self, name: str) -> Mapping[str, Params]:
        """Return the argument of `Params.check` and `Params.estimate` of that stage."""
        stages = {node.name: node.stage for node in self.nodes.values()}
        edges = {node.name: node.edges for node in self.nodes.values()}
        params = {node.name: node.params for node in self.nodes.values()}
        return Upstream(name, stages, edges, params)


class Upstream(Mapping[str, Params]):
    """The parameters of the stages that feed one, by edge (`tokens`, `corpora[0]`).

    Iteration yields the direct ones; `tokens.tokenizer` reaches further up. An input from the store
    has the defaults of `Params`.
    """

    def __init__(
        self,
        name: str,
        stages: Mapping[str, Stage],
        edges: Mapping[str, Mapping[str, tuple[Ref, ...]]],
        params: Mapping[str, Params],
    ) -> None:
        self._name, self._params = name, {_STORED: Params(), **params}
        self._producers: dict[str, dict[str, str]] = {node: {} for node in edges}
        for node, taken in edges.items():
            for edge, refs in taken.items():
                for i, ref in enumerate(refs):
                    label = f"{edge}[{i}]" if stages[node].inputs[edge].many else edge
                    producer = ref.name if isinstance(ref, StageRef) else _STORED
                    self._producers[node][label] = producer

    def __getitem__(self, edges: str) -> Params:
        name = self._name
        for edge in edges.split("."):
            name = self._producers.get(name, {})[edge]
        return self._params[name]

    def __iter__(self) -> Iterator[str]:
        direct = self._producers[self._name]
        return (edge for edge, producer in direct.items() if producer in self._params)

    def __len__(self) -> int:
        return sum(1 for _ in self)
