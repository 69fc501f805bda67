"""What a run would do, stage by stage, and why, before anything is started.

    clean      cached
    tokens     RUN because upstream clean changed
    gpt        RESUME at step 1200/5000
    sft        RUN because train.lr 3e-4 -> 2e-4

A fingerprint decides: what has an artifact is cached. The reason of a miss is the difference
from the artifact of the same stage that is nearest to it. Code does not decide (a comment must
not retrain a model), it warns; `strict_code` makes it decide. Making a stage again (`rerun`,
`from_`) leaves its fingerprint as it is: what depends on it stays cached unless it is named too.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
"""Where an input comes from: {stage | artifact, uses, fingerprint}."""
ModelResolver = Callable[[ModelRef], Artifact]

REASONS = 3  # differences that are spelled out


@dataclass(frozen=True)
class PlannedStage:
    """What will be done about one stage."""

    name: str
    uses: str
    kind: str
    verdict: StageAction
    reason: str
    fingerprint: str
    payload: dict[str, Any] = field(repr=False)
    inputs: dict[str, list[InputSource]]
    """By edge; an artifact or a model is given as `artifact:<fp>`, `model:<name>@<alias>`."""
    needs: tuple[str, ...]
    """The stages that must be there first."""
    estimate: dict[str, float]
    """See `Params.estimate`."""
    warnings: tuple[str, ...]
    source_hash: str
    """Of the module that the stage stands in."""
    forced: bool = False
    """Made again although its artifact may be there: the new one is the next generation, and
    unfinished work of the old one is no part of it."""

    def __str__(self) -> str:
        """The verdict as a sentence: `RUN because train.lr 3e-4 -> 2e-4`."""
        if self.verdict == "run":
            return f"RUN because {self.reason}"
        return f"RESUME at {self.reason}" if self.verdict == "resume" else self.verdict


@dataclass(frozen=True)
class Plan:
    """What a run would do, in an order in which it can be done."""

    pipeline: str
    stages: list[PlannedStage]

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads."""
        return {"pipeline": self.pipeline, "stages": [asdict(stage) for stage in self.stages]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Read `to_json` again."""
        tuples = ("needs", "warnings")
        stages = [
            PlannedStage(**{**stage, **{key: tuple(stage[key]) for key in tuples}})
            for stage in data["stages"]
        ]
        return cls(data["pipeline"], stages)


def make_plan(
    spec: Spec,
    store: Store,
    *,
    only: str | None = None,
    from_: str | None = None,
    rerun: Sequence[str] = (),
    strict_code: bool = False,
    resolve_model: ModelResolver | None = None,
) -> Plan:
    """Plan a pipeline against a store; touches nothing in it.

    Args:
        spec: the pipeline.
        store: where artifacts are looked for.
        only: this stage alone; what it needs must be there.
        from_: make this stage and all that depends on it again.
        rerun: make these stages again.
        strict_code: make what was made by other code again.
        resolve_model: what `model:<name>@<alias>` stands for now.

    Raises:
        NotFound: a stage that is named is not in the pipeline.
        SpecError: with every input that cannot be had.
        Failure: the disk does not let the store be read.
    """
    forced = _forced(spec, from_, rerun)
    _known(spec, [only] if only else [])
    planner = _Planner(spec, store, forced, strict_code, resolve_model)
    for node in spec.nodes.values():
        planner.plan(node)
    if only:
        planner.narrow(only)
    if planner.problems:
        raise SpecError(planner.problems)
    return Plan(spec.name, list(planner.planned.values()))


def source_hash(stage: Stage) -> str:
    """sha256 of the file that the stage's function stands in; empty if there is no file."""
    try:
        path = inspect.getsourcefile(stage.run)
        return hashlib.sha256(Path(path or "").read_bytes()).hexdigest()
    except (OSError, TypeError):
        return ""


def _forced(spec: Spec, from_: str | None, rerun: Sequence[str]) -> dict[str, str]:
    """Stages that are made again whatever there is, with the reason."""
    _known(spec, [*([from_] if from_ else []), *rerun])
    needs = {node.name: node.needs for node in spec.nodes.values()}
    after = {from_, *graph.downstream(needs, from_)} if from_ else set()
    reasons = {str(name): f"forced by --from {from_}" for name in after}
    return {**reasons, **dict.fromkeys(rerun, "forced by --rerun")}


def _known(spec: Spec, names: Iterable[str]) -> None:
    for name in names:
        if name not in spec.nodes:
            remedy = did_you_mean(name, spec.nodes)
            raise NotFound(f"the pipeline {spec.name} has no stage {name!r}", remedy=remedy)


class _Planner:
    """Goes through the stages in order; each finds those before it in `planned`."""

    def __init__(
        self,
        spec: Spec,
        store: Store,
        forced: Mapping[str, str],
        strict_code: bool,
        resolve_model: ModelResolver | None,
    ) -> None:
        self.spec = spec
        self.store = store
        self.forced = forced
        self.strict_code = strict_code
        self.resolve_model = resolve_model
        self.planned: dict[str, PlannedStage] = {}
        self.found: dict[str, Artifact] = {}
        self.problems: list[Problem] = []
        self._made: dict[str, list[Artifact]] | None = None

    def plan(self, node: Node) -> None:
        """Plan one stage; if its identity cannot be known, say why and leave it out."""
        inputs = self._inputs(node)
        try:
            externals = node.params.externals()
        except UserError as error:
            self.problems.append(Problem(node.name, str(error), error.remedy, node.where))
            return
        if inputs is None:
            return
        prints = {edge: [s["fingerprint"] for s in sources] for edge, sources in inputs.items()}
        wanted = identity_payload(node.stage, node.params, prints, externals)
        fp = fingerprint(wanted)
        code = source_hash(node.stage)
        found = self.store.find(node.uses, fp)
        warnings = self._warnings(found, code, inputs) if found else ()
        if found:
            self.found[node.name] = found
        verdict, reason, forced = self._verdict(node, fp, wanted, found, warnings)
        self.planned[node.name] = PlannedStage(
            name=node.name,
            uses=node.uses,
            kind=node.stage.output,
            verdict=verdict,
            reason=reason,
            fingerprint=fp,
            payload=wanted,
            inputs=inputs,
            needs=node.needs,
            estimate=dict(node.params.estimate(self.spec.upstream(node.name))),
            warnings=warnings,
            source_hash=code,
            forced=forced,
        )

    def narrow(self, only: str) -> None:
        """Leave out all but one stage and what feeds it, which must be there."""
        for name in self.spec.nodes[only].needs:
            if name in self.planned and name not in self.found:
                message = f"needs {name}, which was never made"
                remedy = f"leave out --only, or run --only {name} first"
                self.problems.append(Problem(only, message, remedy, self.spec.nodes[only].where))
        for name, stage in self.planned.items():
            if name in self.spec.nodes[only].needs:
                self.planned[name] = replace(
                    stage, verdict="cached", reason=f"needed by {only}", forced=False
                )
            elif name != only:
                self.planned[name] = replace(
                    stage, verdict="skip", reason="left out by --only", forced=False
                )

    def _verdict(
        self,
        node: Node,
        fp: str,
        wanted: dict[str, Any],
        found: Artifact | None,
        warnings: Sequence[str],
    ) -> tuple[StageAction, str, bool]:
        """The verdict, its reason, and whether it overrules an artifact that may be there."""
        if node.name in self.forced:
            return "run", self.forced[node.name], True
        drift = [warning for warning in warnings if warning.startswith("code changed")]
        if found and self.strict_code and drift:
            return "run", drift[0], True
        if found:
            return "cached", f"made by {found.manifest['run'].get('id', 'hand')}", False
        if point := read_resume_point(self.store.work(node.uses, fp)):
            return "resume", point, False
        if damage := self.store.corruption_reason(node.uses, fp):
            return "run", f"artifact is corrupt: {damage}", False
        return "run", self._difference(node, wanted), False

    def _difference(self, node: Node, wanted: dict[str, Any]) -> str:
        """How the wanted payload differs from the nearest that was made.

        Near: under the same name in a pipeline, then in the fewest fields, then the newest.
        """
        producers = {
            edge: [ref.name if isinstance(ref, StageRef) else str(ref) for ref in refs]
            for edge, refs in node.edges.items()
        }
        candidates = [
            (artifact.manifest, describe_changes(artifact.manifest["payload"], wanted, producers))
            for artifact in self._artifacts(node.uses)
        ]
        candidates.sort(key=lambda pair: str(pair[0].get("created", "")), reverse=True)
        candidates.sort(key=lambda pair: (pair[0]["run"].get("stage") != node.name, len(pair[1])))
        if not candidates:
            return "never made"
        different = candidates[0][1]
        more = len(different) - REASONS
        shown = ", ".join(different[:REASONS])
        return f"{shown} and {more} more" if more > 0 else shown

    def _artifacts(self, uses: str) -> list[Artifact]:
        if self._made is None:
            self._made = {}
            for artifact in self.store.artifacts():
                self._made.setdefault(artifact.uses, []).append(artifact)
        return self._made.get(uses, [])

    def _warnings(
        self, found: Artifact, code: str, inputs: Mapping[str, list[InputSource]]
    ) -> tuple[str, ...]:
        """What a person should know of an artifact that will be used as it is."""
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
                    warnings.append(f"{source['stage']} was made again since, with other bytes")
        return tuple(warnings)

    def _inputs(self, node: Node) -> dict[str, list[InputSource]] | None:
        """Where each input comes from; None if one of them is not known."""
        inputs = {
            edge: [self._source(node, edge, ref) for ref in refs]
            for edge, refs in node.edges.items()
        }
        if any(source is None for sources in inputs.values() for source in sources):
            return None
        return {edge: [s for s in sources if s] for edge, sources in inputs.items()}

    def _source(self, node: Node, edge: str, ref: Ref) -> InputSource | None:
        if isinstance(ref, StageRef):
            if ref.name not in self.planned:
                return None
            made = self.planned[ref.name]
            return {"stage": ref.name, "uses": made.uses, "fingerprint": made.fingerprint}
        takes = node.stage.inputs[edge]
        try:
            artifact = self._existing(ref)
            if artifact.kind not in takes.kinds:
                raise UserError(f"accepts {' or '.join(takes.kinds)}, but {ref} is {artifact.kind}")
        except UserError as error:
            key = f"{node.name}.{edge}"
            self.problems.append(Problem(key, error.message, error.remedy, node.where))
            return None
        return {
            "artifact": str(ref),
            "uses": artifact.uses,
            "fingerprint": artifact.fingerprint,
        }

    def _existing(self, ref: ArtifactRef | ModelRef) -> Artifact:
        if isinstance(ref, ArtifactRef):
            return self.store.by_fingerprint(ref.fingerprint)
        if self.resolve_model is None:
            raise UserError(f"{ref} cannot be looked up here", remedy="give its artifact:… instead")
        return self.resolve_model(ref)


def read_resume_point(work: Path) -> str:
    """`step 1200/5000` (or the unit that the stage counts in), if unfinished work says so."""
    point: dict[str, Any] = read_json(work / "observed" / "resume.json", {})
    if "step" not in point:
        return ""
    progress: dict[str, Any] = read_json(work / "observed" / "progress.json", {})
    unit = str(progress.get("unit") or "step")
    total = f"/{point['total']}" if point.get("total") else ""
    return f"{unit.removesuffix('s')} {point['step']}{total}"
