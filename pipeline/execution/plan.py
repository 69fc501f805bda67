"""The plan of a run: what it will do for each stage, and why, before anything starts.

    clean      cached
    tokens     RUN because upstream clean changed
    gpt        RESUME at step 1200/5000
    sft        RUN because train.lr 3e-4 -> 2e-4

The fingerprint decides: a stage with an artifact is cached. The reason of a miss is the difference
from the nearest artifact of the same stage. Changed code only gives a warning, because a comment
must not retrain a model; `strict_code` makes it decide. Running a stage again (`rerun`, `from_`)
does not change its fingerprint: its dependents stay cached unless they are named too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipeline import graph
from pipeline.atomic_io import read_json
from pipeline.errors import NotFound, Problem, SpecError, UserError, did_you_mean
from pipeline.fingerprint import describe_changes, fingerprint, identity_payload
from pipeline.spec.pipeline_spec import ArtifactRef, ModelRef, Node, Ref, Spec, StageRef
from pipeline.stage import Stage
from pipeline.storage.artifact import Artifact
from pipeline.storage.store import Store

StageAction = Literal["cached", "resume", "run", "skip"]
InputSource = dict[str, str]
"""The origin of an input: {stage | artifact, uses, fingerprint}."""
ModelResolver = Callable[[ModelRef], Artifact]
SourceHash = Callable[[Stage], str]
"""Hash of the code of a stage; empty if it is not known."""

MAX_REASONS = 3  # differences that are listed
JSON_KEYS = {"action": "verdict", "verdict": "action", "rerun": "forced", "forced": "rerun"}
"""Fields of `PlannedStage` whose JSON key differs, in both directions: plan files, journals and
`plan --json` keep their keys, because other programs read them."""


@dataclass(frozen=True)
class PlannedStage:
    """The plan for one stage."""

    name: str
    uses: str
    kind: str
    action: StageAction
    reason: str
    fingerprint: str
    payload: dict[str, Any] = field(repr=False)
    inputs: dict[str, list[InputSource]]
    """By edge; artifacts and models are written `artifact:<fp>`, `model:<name>@<alias>`."""
    needs: list[str]
    """The direct upstream stages."""
    estimate: dict[str, float]
    """See `Params.estimate`."""
    warnings: list[str]
    source_hash: str
    """Hash of the code of the stage, if there is an artifact to compare it with."""
    rerun: bool = False
    """True if the stage runs although its artifact may exist: the new artifact is the next
    generation, and unfinished work of the old one is discarded."""
    estimate_rows: list[Mapping[str, Any]] = field(default_factory=list)
    """See `Params.estimate_rows`."""

    def __str__(self) -> str:
        """Return the action as a sentence: `RUN because train.lr 3e-4 -> 2e-4`."""
        words = {"run": f"RUN because {self.reason}", "resume": f"RESUME at {self.reason}"}
        return words.get(self.action, self.action)


@dataclass(frozen=True)
class Plan:
    """The stages of a run in topological order, with an action for each."""

    pipeline: str
    stages: list[PlannedStage]
    only: str | None = None
    """The one stage that the run was asked for."""
    strict_code: bool = False
    """True if changed code runs a stage again."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads."""
        return {**vars(self), "stages": [_swap_keys(asdict(stage)) for stage in self.stages]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Read the data of `to_json`."""
        stages = [PlannedStage(**_swap_keys(stage)) for stage in data["stages"]]
        return cls(**{**data, "stages": stages})


def make_plan(
    spec: Spec,
    store: Store,
    *,
    only: str | None = None,
    from_: str | None = None,
    rerun: Sequence[str] = (),
    strict_code: bool = False,
    resolve_model: ModelResolver | None = None,
    source_hash: SourceHash = lambda stage: "",
) -> Plan:
    """Plan a pipeline against a store, which is only read.

    Args:
        spec: the pipeline.
        store: where artifacts are searched.
        only: the one stage to run; its inputs must exist.
        from_: run this stage and all that depend on it again.
        rerun: run these stages again.
        strict_code: run the stages whose artifacts were produced by other code again.
        resolve_model: returns the artifact that `model:<name>@<alias>` refers to now.
        source_hash: returns the hash of the code that a stage has now. Default: code is not
            compared.

    Raises:
        NotFound: a named stage is not in the pipeline.
        SpecError: with every input that cannot be found.
        Failure: the store cannot be read.
    """
    for name in filter(None, (only, from_, *rerun)):
        if name not in spec.nodes:
            remedy = did_you_mean(name, spec.nodes)
            raise NotFound(f"the pipeline {spec.name} has no stage {name!r}", remedy=remedy)
    forced: dict[str, str] = {}
    if from_:
        needs = {node.name: node.needs for node in spec.nodes.values()}
        after = {from_, *graph.downstream(needs, from_)}
        forced = dict.fromkeys(after, f"forced by --from {from_}")
    forced.update(dict.fromkeys(rerun, "forced by --rerun"))
    planner = _Planner(spec, store, forced, strict_code, resolve_model, source_hash)
    for node in spec.nodes.values():
        planner.plan(node)
    if only:
        planner.restrict_to(spec.nodes[only])
    if planner.problems:
        raise SpecError(planner.problems)
    return Plan(spec.name, list(planner.planned.values()), only, strict_code)


@dataclass
class _Planner:
    """Planner of the stages in topological order; `planned` holds the stages planned so far."""

    spec: Spec
    store: Store
    forced: Mapping[str, str]
    strict_code: bool
    resolve_model: ModelResolver | None
    source_hash: SourceHash
    planned: dict[str, PlannedStage] = field(default_factory=dict)
    found: dict[str, Artifact] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def plan(self, node: Node) -> None:
        """Plan one stage; if its identity cannot be determined, record the problem."""
        edges = node.edges.items()
        inputs = {edge: [self._source(node, edge, ref) for ref in refs] for edge, refs in edges}
        try:
            externals = node.params.externals()
        except UserError as error:
            self.problems.append(Problem(node.name, str(error), error.remedy, node.where))
            return
        known = {edge: [s for s in sources if s] for edge, sources in inputs.items()}
        if known != inputs:  # an input has a problem itself
            return
        prints = {edge: [s["fingerprint"] for s in sources] for edge, sources in known.items()}
        wanted = identity_payload(node.stage, node.params, prints, externals)
        fp = fingerprint(wanted)
        found = self.store.find(node.uses, fp)
        code = self.source_hash(node.stage) if found else ""
        warnings = self._warnings(found, code, known) if found else []
        if found:
            self.found[node.name] = found
        drift = [warning for warning in warnings if warning.startswith("code changed")]
        action: StageAction = "run"
        rerun = node.name in self.forced or bool(self.strict_code and drift)
        if node.name in self.forced:
            reason = self.forced[node.name]
        elif rerun:
            reason = drift[0]
        elif found:
            action, reason = "cached", f"produced by {found.manifest['run'].get('id', 'hand')}"
        elif point := read_resume_point(self.store.work(node.uses, fp)):
            action, reason = "resume", point
        elif damage := self.store.corruption_reason(node.uses, fp):
            reason = f"artifact is corrupt: {damage}"
        else:
            reason = self._difference(node, wanted)
        self.planned[node.name] = PlannedStage(
            name=node.name,
            uses=node.uses,
            kind=node.stage.output,
            action=action,
            reason=reason,
            fingerprint=fp,
            payload=wanted,
            inputs=known,
            needs=list(node.needs),
            estimate=dict(node.params.estimate(self.spec.upstream(node.name))),
            estimate_rows=list(node.params.estimate_rows(self.spec.upstream(node.name))),
            warnings=warnings,
            source_hash=code,
            rerun=rerun,
        )

    def restrict_to(self, only: Node) -> None:
        """Skip all but one stage; its inputs must exist."""
        for name in only.needs:
            if name in self.planned and name not in self.found:
                message = f"needs {name}, which has no artifact"
                remedy = f"leave out --only, or run --only {name} first"
                self.problems.append(Problem(only.name, message, remedy, only.where))
        for name, stage in self.planned.items():
            if name != only.name:
                action: StageAction = "cached" if name in only.needs else "skip"
                reason = "left out by --only" if action == "skip" else f"needed by {only.name}"
                self.planned[name] = replace(stage, action=action, reason=reason, rerun=False)

    def _source(self, node: Node, edge: str, ref: Ref) -> InputSource | None:
        """Return the origin of an input; None, with a problem recorded, if it has none."""
        if isinstance(ref, StageRef):
            if made := self.planned.get(ref.name):
                return {"stage": ref.name, "uses": made.uses, "fingerprint": made.fingerprint}
            return None
        kinds = node.stage.inputs[edge].kinds
        try:
            if isinstance(ref, ArtifactRef):
                artifact = self.store.by_fingerprint(ref.fingerprint)
            elif self.resolve_model:
                artifact = self.resolve_model(ref)
            else:
                raise UserError(f"{ref} cannot be resolved here", remedy="use artifact:… instead")
            if artifact.kind not in kinds:
                raise UserError(f"accepts {' or '.join(kinds)}, but {ref} is {artifact.kind}")
        except UserError as error:
            key = f"{node.name}.{edge}"
            self.problems.append(Problem(key, error.message, error.remedy, node.where))
            return None
        uses, fp = artifact.uses, artifact.fingerprint
        return {"artifact": str(ref), "uses": uses, "fingerprint": fp}

    def _difference(self, node: Node, wanted: dict[str, Any]) -> str:
        """Describe how the wanted payload differs from the nearest existing one.

        The nearest has the same stage name if any has, then the fewest changed fields, then the
        newest date.
        """
        producers = {
            edge: [ref.name if isinstance(ref, StageRef) else str(ref) for ref in refs]
            for edge, refs in node.edges.items()
        }
        made = [artifact.manifest for artifact in self._artifacts[node.uses]]
        made.sort(key=lambda manifest: str(manifest.get("created", "")), reverse=True)
        changes = [describe_changes(m["payload"], wanted, producers) for m in made]
        if not made:
            return "no artifact yet"
        ranks = [
            (m["run"].get("stage") != node.name, len(c)) for m, c in zip(made, changes, strict=True)
        ]
        nearest = changes[ranks.index(min(ranks))]
        more = len(nearest) - MAX_REASONS
        shown = ", ".join(nearest[:MAX_REASONS])
        return f"{shown} and {more} more" if more > 0 else shown

    @cached_property
    def _artifacts(self) -> Mapping[str, list[Artifact]]:
        """Every artifact of the store, by stage."""
        by_stage: dict[str, list[Artifact]] = defaultdict(list)
        for artifact in self.store.artifacts():
            by_stage[artifact.uses].append(artifact)
        return by_stage

    def _warnings(
        self, found: Artifact, code: str, inputs: Mapping[str, list[InputSource]]
    ) -> list[str]:
        """Return warnings about an artifact that will be used as it is."""
        warnings = []
        made = found.manifest["code"]
        if code and made.get("source_hash") not in ("", None, code):
            since = str(made.get("commit") or "")[:7] or found.manifest["created"]
            warnings.append(f"code changed since {since}")
        for edge, sources in inputs.items():
            digests = [old["digest"] for old in found.manifest["inputs"].get(edge, ())]
            for source, digest in zip(sources, digests, strict=False):
                now = self.found.get(source.get("stage", ""))
                if now and now.digest != digest:
                    warnings.append(f"{source['stage']} was produced again since, with other bytes")
        return warnings


def _swap_keys(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage with its fields named by their JSON keys, or the reverse."""
    return {JSON_KEYS.get(key, key): value for key, value in stage.items()}


def read_resume_point(work: Path) -> str:
    """Return where unfinished work resumes, `step 1200/5000` in the stage's own unit, or ""."""
    point: dict[str, Any] = read_json(work / "observed" / "resume.json", {})
    if "step" not in point:
        return ""
    progress: dict[str, Any] = read_json(work / "observed" / "progress.json", {})
    unit = str(progress.get("unit") or "step")
    total = f"/{point['total']}" if point.get("total") else ""
    return f"{unit.removesuffix('s')} {point['step']}{total}"
