"""A pipeline file, checked: YAML in, a typed description out, or every problem at once.

    name: quickstart
    seed: 0                                   # for every stage that has a `seed` and sets none
    extends: base.yaml                        # lies under this file, mapping by mapping
    stages:
      clean:  {uses: clean, sources: ["python:docs"]}
      tokens: {uses: tokenize.pack, documents: ${clean}, tokenizer: artifact:0123456789abcdef}
      gpt:    {uses: pretrain, tokens: ${tokens}, init: model:gpt@champion, train: {lr: 3e-4}}
    promote: {model: gpt, stage: ${gpt}, require: ["gpt.loss<3"]}

`${stage}`, `artifact:<fingerprint>` and `model:<name>@<alias>` are edges, and only keys that the
stage declares as inputs take them. `${env:NAME}` names a secret; it stays a name here. An
override is a dotted key: `gpt.train.lr=3e-4`, `seed=1`, `promote.model=small`.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline import graph
from pipeline.errors import Problem, SpecError, UserError, did_you_mean
from pipeline.kind import is_promotable
from pipeline.naming import NAME, NAME_RULE
from pipeline.promotion_gates import Gate, check_alias
from pipeline.redaction import SECRET
from pipeline.spec import validation_messages
from pipeline.spec.overrides import FILE_KEYS, apply_overrides, resolve_extends
from pipeline.spec.yaml_reader import KeyPath, Tree, format_key_path
from pipeline.stage import Input, Params, Stage
from pipeline.stage_registry import find_stage

PROMOTE_KEYS = ("model", "stage", "alias", "require")
DEFAULT_ALIAS = "champion"

_STAGE_REF = re.compile(r"\$\{([^{}:]*)\}")
_ARTIFACT_REF = re.compile(r"artifact:([0-9a-f]{6,16})")
_MODEL_REF = re.compile(rf"model:({NAME.pattern}?)(?:@([A-Za-z0-9_-]+))?")
_REFERENCE = re.compile(r"\$\{[^{}]*\}")
_STORED = ""


@dataclass(frozen=True)
class StageRef:
    """What another stage of the pipeline makes."""

    name: str

    def __str__(self) -> str:
        return f"${{{self.name}}}"


@dataclass(frozen=True)
class ArtifactRef:
    """An artifact of the store, by its fingerprint or the beginning of it (6 digits or more)."""

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


@dataclass(frozen=True)
class Node:
    """A stage of a pipeline: which function, with which parameters, fed by what."""

    name: str
    uses: str
    stage: Stage
    params: Params
    edges: Mapping[str, tuple[Ref, ...]]
    where: str = field(compare=False)

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages of the pipeline that feed this one, each once."""
        refs = (ref for refs in self.edges.values() for ref in refs)
        return tuple(dict.fromkeys(ref.name for ref in refs if isinstance(ref, StageRef)))


@dataclass(frozen=True)
class Promotion:
    """What to register when the run is done, and the gates before it."""

    model: str
    stage: str
    alias: str = DEFAULT_ALIAS
    require: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spec:
    """A pipeline that can run as far as one can tell without running it."""

    name: str
    seed: int
    nodes: Mapping[str, Node]
    """In topological order."""
    promote: Promotion | None
    resolved: dict[str, Any]
    """The file after `extends` and overrides, as plain data; `from_resolved` reads it."""
    source: str = field(compare=False)

    def upstream(self, name: str) -> Mapping[str, Params]:
        """What `Params.check` and `Params.estimate` of that stage are given."""
        stages = {node.name: node.stage for node in self.nodes.values()}
        edges = {node.name: node.edges for node in self.nodes.values()}
        params = {node.name: node.params for node in self.nodes.values()}
        return Upstream(name, _links(stages, edges), params)


class Upstream(Mapping[str, Params]):
    """The parameters of the stages that feed one, by edge (`tokens`, `corpora[0]`).

    Iterates over the direct ones; `tokens.tokenizer` reaches further up. Of what lies in the store
    already nothing is known: it has the parameters of no stage in particular.
    """

    def __init__(
        self, name: str, links: Mapping[str, Mapping[str, str]], params: Mapping[str, Params]
    ) -> None:
        self._name, self._links, self._params = name, links, {_STORED: Params(), **params}

    def __getitem__(self, edges: str) -> Params:
        name = self._name
        for edge in edges.split("."):
            name = self._links.get(name, {})[edge]
        return self._params[name]

    def __iter__(self) -> Iterator[str]:
        return (edge for edge, to in self._links[self._name].items() if to in self._params)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Read and check a pipeline file.

    Args:
        path: the file; `extends` inside it is relative to its folder.
        overrides: `key=value`, the key dotted as in `gpt.train.lr`, the value YAML.

    Raises:
        SpecError: with every problem that was found.
    """
    return _Checker(apply_overrides(resolve_extends(Path(path)), overrides)).spec(str(path))


def spec_from_resolved(
    data: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "run.yaml"
) -> Spec:
    """Check `Spec.resolved` again, on any machine, with further overrides.

    Raises:
        SpecError: with every problem that was found.
    """
    tree = Tree(copy.deepcopy(dict(data)), {(): source})
    return _Checker(apply_overrides(tree, overrides)).spec(source)


class _Checker:
    """Turns a tree into a Spec and collects all that is wrong on the way.

    Each step leaves what it could make in `stages`, `params` and `edges`, by node name; later
    steps check what is there, so that one mistake does not hide another.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.problems = tree.problems
        self.names: list[str] = []
        self.stages: dict[str, Stage] = {}
        self.params: dict[str, Params] = {}
        self.edges: dict[str, dict[str, tuple[Ref, ...]]] = {}

    def spec(self, source: str) -> Spec:
        data = self.tree.data
        if not isinstance(data, dict):
            self.problem(
                (), f"expected a pipeline file, got {validation_messages.describe_value(data)}"
            )
            raise SpecError(self.problems)
        self.unknown_keys((), data, FILE_KEYS)
        name = self.name(("name",), data.get("name"), "pipeline")
        seed = self.seed(data.get("seed", 0))
        sections = self.sections(data.get("stages"))
        for node, section in sections.items():
            self.stage(node, section, seed)
        for node in self.stages:
            self.connect(node, sections[node])
        ordered = self.order()
        self.cross_check()
        promote = self.promotion(data.get("promote"))
        if self.problems:
            raise SpecError(self.problems)
        nodes = {node: self.node(node) for node in ordered}
        resolved = {key: value for key, value in data.items() if key != "extends"}
        return Spec(name, seed, nodes, promote, {**resolved, "seed": seed}, source)

    def problem(self, path: KeyPath, message: str, remedy: str = "") -> None:
        self.problems.append(
            Problem(format_key_path(path), message, remedy, self.tree.location(path))
        )

    def unknown_keys(self, path: KeyPath, data: Mapping[str, Any], known: Sequence[str]) -> None:
        for key in data:
            if key not in known:
                self.problem((*path, key), "unknown key", did_you_mean(key, known))

    def name(self, path: KeyPath, value: Any, of: str) -> str:
        if value is None:
            self.problem(path, "missing", f"say what the {of} is called")
        elif not isinstance(value, str):
            self.problem(
                path,
                f"expected text, got {validation_messages.describe_value(value)}",
                validation_messages.type_remedy(["text"], value),
            )
        elif not NAME.fullmatch(value):
            self.problem(path, f"{value!r} is not a valid name for a {of}", NAME_RULE)
        return str(value)

    def seed(self, value: Any) -> int:
        if type(value) is not int or value < 0:
            self.problem(
                ("seed",),
                f"expected a whole number from 0, got {validation_messages.describe_value(value)}",
            )
            return 0
        return value

    def sections(self, data: Any) -> dict[str, dict[str, Any]]:
        """The stages of the file that are worth a closer look."""
        if not isinstance(data, dict) or not data:
            what = (
                f"expected stages, got {validation_messages.describe_value(data)}"
                if data
                else "there are no stages"
            )
            self.problem(("stages",), what, "for example `clean: {uses: clean}`")
            return {}
        self.names = list(data)
        found = {}
        for node, section in data.items():
            path = ("stages", node)
            if not NAME.fullmatch(node):
                self.problem(path, f"{node!r} is not a valid name for a stage", NAME_RULE)
            elif node in FILE_KEYS:
                self.problem(path, f"{node!r} is a word of the file", "choose another name")
            if isinstance(section, dict):
                found[node] = section
            else:
                self.problem(
                    path,
                    f"expected a stage, got {validation_messages.describe_value(section)}",
                    "write {uses: …}",
                )
        return found

    def stage(self, node: str, section: Mapping[str, Any], seed: int) -> None:
        """Find the stage function and read the node's parameters."""
        path = ("stages", node, "uses")
        uses = section.get("uses")
        if not isinstance(uses, str):
            message = (
                f"expected the name of a stage, got {validation_messages.describe_value(uses)}"
                if uses
                else "missing"
            )
            return self.problem(path, message, "`headwater stages` lists them")
        try:
            stage = self.stages[node] = find_stage(uses)
        except UserError as error:
            return self.problem(path, str(error), error.remedy)
        taken = {"uses", *stage.inputs}
        values = {key: value for key, value in section.items() if key not in taken}
        self.references(("stages", node), values, stage)
        if "seed" in stage.params.model_fields:
            values.setdefault("seed", seed)
        try:
            text = json.dumps(values)
            self.params[node] = stage.params.model_validate_json(text, strict=True)
        except ValidationError as error:
            for found in validation_messages.validation_issues(
                error, stage.params, values, stage.inputs
            ):
                self.problem(("stages", node, *found.path), found.message, found.remedy)
        return None

    def references(self, path: KeyPath, value: Any, stage: Stage) -> None:
        """Refuse `${stage}` in a parameter, where it would be read as text."""
        if isinstance(value, dict | list):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                self.references((*path, key), item, stage)
        elif isinstance(value, str):
            for reference in _REFERENCE.findall(value):
                if not SECRET.fullmatch(reference):
                    inputs = ", ".join(stage.inputs) or "none"
                    remedy = f"the inputs of {stage.uses}: {inputs}; secrets: ${{env:NAME}}"
                    self.problem(path, f"{reference} is an edge, and this is a parameter", remedy)

    def connect(self, node: str, section: Mapping[str, Any]) -> None:
        """Read the node's edges."""
        self.edges[node] = {}
        for edge, takes in self.stages[node].inputs.items():
            path = ("stages", node, edge)
            value = section.get(edge)
            if value is None or value == []:
                if not takes.optional:
                    self.problem(
                        path, "missing", f"it takes {_kinds(takes)}, as in `{edge}: ${{stage}}`"
                    )
                continue
            if isinstance(value, list) and not takes.many:
                self.problem(path, "takes one artifact, not a list", f"it takes {_kinds(takes)}")
                continue
            values = value if isinstance(value, list) else [value]
            paths = [(*path, i) for i in range(len(values))] if values is value else [path]
            refs = [self.edge(at, item, takes) for at, item in zip(paths, values, strict=True)]
            self.edges[node][edge] = tuple(ref for ref in refs if ref is not None)

    def edge(self, path: KeyPath, value: Any, takes: Input) -> Ref | None:
        ref = _reference(value)
        if ref is None:
            forms = "${stage}, artifact:<fingerprint> or model:<name>@<alias>"
            self.problem(
                path,
                f"expected {forms}, got {validation_messages.describe_value(value)}",
                f"it takes {_kinds(takes)}",
            )
        elif isinstance(ref, StageRef):
            self.typed(path, ref, takes)
        return ref

    def typed(self, path: KeyPath, ref: StageRef, takes: Input) -> None:
        """Check that the producer exists and makes what the edge takes."""
        if ref.name not in self.names:
            remedy = did_you_mean(ref.name, self.names)
            return self.problem(path, f"there is no stage {ref.name!r}", remedy)
        made = self.stages[ref.name].output if ref.name in self.stages else None
        if made and made not in takes.kinds:
            able = [n for n, stage in self.stages.items() if stage.output in takes.kinds]
            remedy = (
                f"made by: {', '.join(able)}" if able else f"no stage here makes {_kinds(takes)}"
            )
            return self.problem(path, f"takes {_kinds(takes)}, but {ref} makes {made}", remedy)
        return None

    def order(self) -> list[str]:
        needs = {
            node: [r.name for refs in edges.values() for r in refs if isinstance(r, StageRef)]
            for node, edges in self.edges.items()
        }
        try:
            return graph.topological_order(needs)
        except graph.CycleError as error:
            path = ("stages", error.ring[0])
            self.problem(path, f"the stages wait for each other: {error}", "remove one edge")
            return []

    def cross_check(self) -> None:
        """Let every stage look at its own values and at those that feed it."""
        links = _links(self.stages, self.edges)
        for node, params in self.params.items():
            for found in params.check(Upstream(node, links, self.params)):
                path = ("stages", node, *_path(found.key))
                self.problem(path, found.message, found.remedy)

    def promotion(self, data: Any) -> Promotion | None:
        if data is None:
            return None
        if not isinstance(data, dict):
            self.problem(
                ("promote",), f"expected a section, got {validation_messages.describe_value(data)}"
            )
            return None
        self.unknown_keys(("promote",), data, PROMOTE_KEYS)
        model = self.name(("promote", "model"), data.get("model"), "model")
        alias = self.alias(data.get("alias", DEFAULT_ALIAS))
        stage = data.get("stage")
        ref = _reference(stage)
        name = ref.name if isinstance(ref, StageRef) else str(stage)
        made = self.stages[name].output if name in self.stages else ""
        if name not in self.names:
            message = f"there is no stage {name!r}" if stage else "missing"
            self.problem(("promote", "stage"), message, "the stage whose model is promoted")
        elif made and not is_promotable(made):
            self.problem(("promote", "stage"), f"{name} makes {made}, which is no model")
        return Promotion(model, name, alias, self.gates(data.get("require", [])))

    def alias(self, value: Any) -> str:
        try:
            check_alias(str(value))
        except UserError as error:
            self.problem(("promote", "alias"), error.message, error.remedy)
        return str(value)

    def gates(self, data: Any) -> tuple[str, ...]:
        path = ("promote", "require")
        if not isinstance(data, list):
            self.problem(
                path,
                f"expected a list, got {validation_messages.describe_value(data)}",
                '["gpt.loss<3"]',
            )
            return ()
        for i, text in enumerate(data):
            try:
                metric = Gate.parse(str(text)).metric
            except UserError as error:
                self.problem((*path, i), error.message, error.remedy)
                continue
            if not any(metric.startswith(f"{name}.") for name in self.names):
                stage = metric.partition(".")[0]
                remedy = did_you_mean(stage, self.names)
                self.problem((*path, i), f"there is no stage {stage!r}", remedy)
        return tuple(str(text) for text in data)

    def node(self, name: str) -> Node:
        stage, where = self.stages[name], self.tree.location(("stages", name))
        return Node(name, stage.uses, stage, self.params[name], self.edges[name], where)


def _reference(value: Any) -> Ref | None:
    """An edge's text as a reference, or None."""
    if not isinstance(value, str):
        return None
    if match := _STAGE_REF.fullmatch(value):
        return StageRef(match[1])
    if match := _ARTIFACT_REF.fullmatch(value):
        return ArtifactRef(match[1])
    if match := _MODEL_REF.fullmatch(value):
        return ModelRef(match[1], match[2] or DEFAULT_ALIAS)
    return None


def _kinds(takes: Input) -> str:
    return " or ".join(takes.kinds)


def _links(
    stages: Mapping[str, Stage], edges: Mapping[str, Mapping[str, tuple[Ref, ...]]]
) -> dict[str, dict[str, str]]:
    """For each node the names that feed it, by edge; list edges one by one. What feeds it from the
    store is `_STORED`."""
    links: dict[str, dict[str, str]] = {}
    for node, taken in edges.items():
        links[node] = {}
        for edge, refs in taken.items():
            for i, ref in enumerate(refs):
                label = f"{edge}[{i}]" if stages[node].inputs[edge].many else edge
                links[node][label] = ref.name if isinstance(ref, StageRef) else _STORED
    return links


def _path(key: str) -> KeyPath:
    """`train.lr`, `sources[0]` as a path."""
    return tuple(int(w) if w.isdigit() else w for w in re.findall(r"[^.\[\]]+", key))
