"""Reads a pipeline file and checks it: YAML in, a `Spec` out, or every problem at once.

    name: quickstart
    seed: 0                                   # of every stage that has a `seed` and sets none
    extends: base.yaml                        # this file is merged over it, mapping by mapping
    stages:
      clean:  {uses: clean, sources: ["python:docs"]}
      tokens: {uses: tokenize.pack, documents: ${clean}, tokenizer: artifact:0123456789abcdef}
      gpt:    {uses: pretrain, tokens: ${tokens}, init_from: model:gpt@champion, train: {lr: 3e-4}}
    promote: {model: gpt, stage: ${gpt}, require: ["gpt.loss<3"]}

An override is a dotted key: `gpt.train.lr=3e-4`, `seed=1`, `promote.model=small`.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from graphlib import CycleError
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline import graph
from pipeline.errors import Problem, SpecError, UserError, did_you_mean
from pipeline.kind import is_promotable
from pipeline.naming import NAME, NAME_RULE
from pipeline.promotion_gates import Gate, check_alias
from pipeline.redaction import SECRET
from pipeline.spec import pipeline_spec
from pipeline.spec.overrides import FILE_KEYS, apply_overrides, resolve_extends
from pipeline.spec.pipeline_spec import Spec, StageRef
from pipeline.spec.validation_messages import describe_value, type_remedy, validation_issues
from pipeline.spec.yaml_reader import KeyPath, Tree, format_key_path
from pipeline.stage import Input, Params, Stage
from pipeline.stage_registry import find_stage

PROMOTE_KEYS = ("model", "stage", "alias", "require")
_ANY_REF = re.compile(r"\$\{[^{}]*\}")


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Read and check a pipeline file.

    Args:
        path: the file; `extends` inside it is relative to its folder.
        overrides: `key=value`, the key dotted as in `gpt.train.lr`, the value YAML.

    Raises:
        SpecError: with every problem that was found.
    """
    return _SpecChecker(apply_overrides(resolve_extends(Path(path)), overrides)).check(str(path))


def spec_from_resolved(
    data: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "run.yaml"
) -> Spec:
    """Check `Spec.resolved` again, on any machine, with further overrides.

    Raises:
        SpecError: with every problem that was found.
    """
    tree = Tree(copy.deepcopy(dict(data)), {(): source})
    return _SpecChecker(apply_overrides(tree, overrides)).check(source)


class _SpecChecker:
    """Builder of a Spec from a tree, which also collects the problems.

    Each step stores its results in `stages`, `params` and `edges`, by node name; later steps check
    what is there, so that one mistake does not hide another.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.problems = tree.problems
        self.names: list[str] = []
        self.stages: dict[str, Stage] = {}
        self.params: dict[str, Params] = {}
        self.edges: dict[str, dict[str, tuple[pipeline_spec.Ref, ...]]] = {}

    def check(self, source: str) -> Spec:
        data = self.tree.data
        if not isinstance(data, dict):
            self.unexpected((), "a pipeline file", data)
            raise SpecError(self.problems)
        self.unknown_keys((), data, FILE_KEYS)
        name = self.name(("name",), data.get("name"), "pipeline")
        seed = data.get("seed", 0)
        if type(seed) is not int or seed < 0:
            self.unexpected(("seed",), "a whole number from 0", seed)
            seed = 0
        sections = self.sections(data.get("stages"))
        for node, section in sections.items():
            self.stage(node, section, seed)
        for node in self.stages:
            self.connect(node, sections[node])
        ordered = self.order()
        for node, params in self.params.items():
            upstream = pipeline_spec.Upstream(node, self.stages, self.edges, self.params)
            for found in params.check(upstream):
                keys = re.findall(r"[^.\[\]]+", found.key)  # train.lr, sources[0]
                path = tuple(int(key) if key.isdigit() else key for key in keys)
                self.problem(("stages", node, *path), found.message, found.remedy)
        promote = self.promotion(data.get("promote"))
        if self.problems:
            raise SpecError(self.problems)
        nodes = {}
        for node in ordered:
            stage, where = self.stages[node], self.tree.location(("stages", node))
            params, edges = self.params[node], self.edges[node]
            nodes[node] = pipeline_spec.Node(node, stage.uses, stage, params, edges, where)
        resolved = {key: value for key, value in data.items() if key != "extends"}
        return Spec(name, seed, nodes, promote, {**resolved, "seed": seed}, source)

    def problem(self, path: KeyPath, message: str, remedy: str = "") -> None:
        where = self.tree.location(path)
        self.problems.append(Problem(format_key_path(path), message, remedy, where))

    def unexpected(self, path: KeyPath, expected: str, value: Any, remedy: str = "") -> None:
        self.problem(path, f"expected {expected}, got {describe_value(value)}", remedy)

    def unknown_keys(self, path: KeyPath, data: Mapping[str, Any], known: Sequence[str]) -> None:
        for key in data:
            if key not in known:
                self.problem((*path, key), "unknown key", did_you_mean(key, known))

    def name(self, path: KeyPath, value: Any, noun: str) -> str:
        if value is None:
            self.problem(path, "missing", f"give the {noun} a name")
        elif not isinstance(value, str):
            self.unexpected(path, "text", value, type_remedy(["text"], value))
        elif not NAME.fullmatch(value):
            self.problem(path, f"{value!r} is not a valid name for a {noun}", NAME_RULE)
        return str(value)

    def sections(self, data: Any) -> dict[str, dict[str, Any]]:
        """Return the stages of the file that can be checked further."""
        path, example = ("stages",), "for example `clean: {uses: clean}`"
        if not data:
            self.problem(path, "there are no stages", example)
        elif not isinstance(data, dict):
            self.unexpected(path, "stages", data, example)
        if not isinstance(data, dict):
            return {}
        self.names = list(data)
        for node, section in data.items():
            if not NAME.fullmatch(node):
                message = f"{node!r} is not a valid name for a stage"
                self.problem((*path, node), message, NAME_RULE)
            elif node in FILE_KEYS:
                message = f"{node!r} is a key of the file"
                self.problem((*path, node), message, "choose another name")
            if not isinstance(section, dict):
                self.unexpected((*path, node), "a stage", section, "write {uses: …}")
        return {node: section for node, section in data.items() if isinstance(section, dict)}

    def stage(self, node: str, section: Mapping[str, Any], seed: int) -> None:
        """Find the stage and read the node's parameters."""
        path, uses = ("stages", node, "uses"), section.get("uses")
        if not isinstance(uses, str):
            remedy = "`headwater stages` lists them"
            if uses:
                return self.unexpected(path, "the name of a stage", uses, remedy)
            return self.problem(path, "missing", remedy)
        try:
            stage = self.stages[node] = find_stage(uses)
        except UserError as error:
            return self.problem(path, str(error), error.remedy)
        reserved = {"uses", *stage.inputs}
        values = {key: value for key, value in section.items() if key not in reserved}
        self.misplaced_references(("stages", node), values, stage)
        if "seed" in stage.params.model_fields:
            values.setdefault("seed", seed)
        try:
            text = json.dumps(values)
            self.params[node] = stage.params.model_validate_json(text, strict=True)
        except ValidationError as error:
            for found in validation_issues(error, stage.params, values, stage.inputs):
                self.problem(("stages", node, *found.path), found.message, found.remedy)
        return None

    def misplaced_references(self, path: KeyPath, value: Any, stage: Stage) -> None:
        """Report `${stage}` in a parameter, where it would be read as text."""
        if isinstance(value, dict | list):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                self.misplaced_references((*path, key), item, stage)
        elif isinstance(value, str):
            for ref in _ANY_REF.findall(value):
                if not SECRET.fullmatch(ref):
                    inputs = ", ".join(stage.inputs) or "none"
                    remedy = f"the inputs of {stage.uses}: {inputs}; secrets: ${{env:NAME}}"
                    self.problem(path, f"{ref} is an edge, and this is a parameter", remedy)

    def connect(self, node: str, section: Mapping[str, Any]) -> None:
        """Read the node's edges."""
        self.edges[node] = {}
        for edge, expected in self.stages[node].inputs.items():
            path, value = ("stages", node, edge), section.get(edge)
            kinds = " or ".join(expected.kinds)
            if value is None or value == []:
                if not expected.optional:
                    remedy = f"it accepts {kinds}, as in `{edge}: ${{stage}}`"
                    self.problem(path, "missing", remedy)
                continue
            if isinstance(value, list) and not expected.many:
                self.problem(path, "accepts one artifact, not a list", f"it accepts {kinds}")
                continue
            items: list[tuple[KeyPath, Any]] = [(path, value)]
            if isinstance(value, list):
                items = [((*path, i), item) for i, item in enumerate(value)]
            refs = [self.edge(at, item, expected) for at, item in items]
            self.edges[node][edge] = tuple(ref for ref in refs if ref is not None)

    def edge(self, path: KeyPath, value: Any, expected: Input) -> pipeline_spec.Ref | None:
        """Read one edge, and check that its producer exists and makes an accepted kind."""
        ref, kinds = pipeline_spec.parse_ref(value), " or ".join(expected.kinds)
        if ref is None:
            forms = "${stage}, artifact:<fingerprint> or model:<name>@<alias>"
            self.unexpected(path, forms, value, f"it accepts {kinds}")
        elif isinstance(ref, StageRef) and ref.name not in self.names:
            self.problem(
                path, f"there is no stage {ref.name!r}", did_you_mean(ref.name, self.names)
            )
        elif isinstance(ref, StageRef) and ref.name in self.stages:
            made = self.stages[ref.name].output
            if made not in expected.kinds:
                able = [n for n, stage in self.stages.items() if stage.output in expected.kinds]
                remedy = f"made by: {', '.join(able)}" if able else f"no stage here makes {kinds}"
                self.problem(path, f"accepts {kinds}, but {ref} makes {made}", remedy)
        return ref

    def order(self) -> list[str]:
        needs = {
            node: [r.name for refs in edges.values() for r in refs if isinstance(r, StageRef)]
            for node, edges in self.edges.items()
        }
        try:
            return graph.topological_order(needs)
        except CycleError as error:
            message = f"the stages need each other: {' -> '.join(error.args[1])}"
            self.problem(("stages", error.args[1][0]), message, "remove one edge")
            return []

    def promotion(self, data: Any) -> pipeline_spec.Promotion | None:
        if data is None:
            return None
        if not isinstance(data, dict):
            self.unexpected(("promote",), "a section", data)
            return None
        self.unknown_keys(("promote",), data, PROMOTE_KEYS)
        model = self.name(("promote", "model"), data.get("model"), "model")
        alias, stage = str(data.get("alias", pipeline_spec.DEFAULT_ALIAS)), data.get("stage")
        try:
            check_alias(alias)
        except UserError as error:
            self.problem(("promote", "alias"), error.message, error.remedy)
        ref = pipeline_spec.parse_ref(stage)
        name = ref.name if isinstance(ref, StageRef) else str(stage)
        made = self.stages[name].output if name in self.stages else ""
        if name not in self.names:
            message = f"there is no stage {name!r}" if stage else "missing"
            self.problem(("promote", "stage"), message, "name the stage whose model is promoted")
        elif made and not is_promotable(made):
            self.problem(("promote", "stage"), f"{name} makes {made}, which is not a model")
        return pipeline_spec.Promotion(model, name, alias, self.gates(data.get("require", [])))

    def gates(self, data: Any) -> tuple[str, ...]:
        path = ("promote", "require")
        if not isinstance(data, list):
            self.unexpected(path, "a list", data, '["gpt.loss<3"]')
            return ()
        for i, text in enumerate(data):
            at = (*path, i)
            try:
                metric = Gate.parse(str(text)).metric
            except UserError as error:
                self.problem(at, error.message, error.remedy)
                continue
            node = next((name for name in self.names if metric.startswith(f"{name}.")), "")
            stage, name = self.stages.get(node), metric.removeprefix(f"{node}.")
            known = stage.metrics if stage else None
            if not node:
                word = metric.partition(".")[0]
                self.problem(at, f"there is no stage {word!r}", _nearest(word, self.names))
            elif known is not None and not any(fnmatchcase(name, pattern) for pattern in known):
                self.problem(at, f"{node} reports no metric {name!r}", _nearest(name, known))
        return tuple(str(text) for text in data)


def _nearest(word: str, known: Iterable[str]) -> str:
    """Return a remedy with the nearest name, if one is near, and all of them."""
    near = did_you_mean(word, known)
    return f"{near} known: {', '.join(sorted(known))}" if near.endswith("?") else near
