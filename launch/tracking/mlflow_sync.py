"""What MLflow should look like for a run, and the pass that makes it so (see `tracking`).

A pass compares the run's status with what the cursor says was sent, and sends the difference.
Everything here is safe to do twice: that, and no bookkeeping, is what makes replay exact.

    search before create    runs and models carry tags that identify them
    points                  what MLflow has of a key at a step is sent again only if the value is
                            another one
    files                   same path, same bytes

MLflow forgets no point. Where a stage went back to a checkpoint and came to other values (after a
NaN), it shows both: those that were given up, and those of the later time, which are the ones that
the report shows alone.
"""

from __future__ import annotations

import json
import math
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.report import charts
from launch.report.run_page import parameters
from launch.tracking.cursor import CURSOR, read_cursor
from launch.tracking.mlflow_client import (
    ARTIFACTS,
    connect,
    is_server,
    mlflow_errors,
    prepare,
    public,
    sole_writer,
)
from launch.ui.formatting import timestamp
from pipeline.atomic_io import write_atomic
from pipeline.context import read_series
from pipeline.execution.run import Run
from pipeline.kind import is_promotable
from pipeline.redaction import redact
from pipeline.status import RunStatus, StageStatus
from pipeline.storage.artifact import OBSERVED, Artifact

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = 1000  # points a request: MLflow's limit
PARAMS = 100  # parameters a request: MLflow's limit
LONGEST = 6000  # characters of a parameter: MLflow's limit

STATES = {
    "finished": "FINISHED",
    "cached": "FINISHED",
    "failed": "FAILED",
    "refused": "FAILED",
    "interrupted": "KILLED",
    "cancelled": "KILLED",
}
UNTOUCHED = ("pending", "waiting", "skipped")

Point = tuple[str, float, int, int]
"""key, value, time (ms), step."""

Sent = dict[str, dict[int, float]]
"""The value of each key at each step."""


class RunSynchronizer:
    """One run's likeness in one MLflow; lives in the mirror's process."""

    def __init__(self, run: Run, uri: str) -> None:
        self.run = run
        self.uri = uri
        self.client: MlflowClient
        self._connected = False
        self._read: dict[Path, tuple[int, int]] = {}  # series file -> inode, bytes sent
        self._known: dict[Path, Sent] = {}  # of series files that were read from their beginning
        self.cursor = read_cursor(run)
        if self.cursor.get("uri") != public(uri):
            self._forget()

    def try_sync(self, patience: float = 1.0) -> bool:
        """One pass; what stops it is noted in the cursor, never raised."""
        try:
            with mlflow_errors(self.uri), sole_writer(self.run.store, patience):
                prepare(self.run.store, self.uri)
                if not self._connected:
                    self.client = connect(self.uri)
                    self._connected = True
                self._sync_once()
        except Exception as error:
            if getattr(error.__cause__, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                self._forget()  # another database than the one that it was sent to
            if str(error) != self.cursor.get("problem"):
                sys.stderr.write(public(traceback.format_exc()))
            self._note(problem=str(error))
            return False
        self._note(problem="")
        return True

    def _forget(self) -> None:
        self.cursor = {"uri": public(self.uri), "stages": {}}
        self._read, self._known = {}, {}

    def _note(self, **facts: Any) -> None:
        """Remember; written only when something is new."""
        before = json.dumps(self.cursor, sort_keys=True)
        self.cursor.update(facts)
        after = json.dumps(self.cursor, sort_keys=True)
        if before != after or not (self.run.folder / CURSOR).exists():
            write_atomic(self.run.folder / CURSOR, after + "\n", durable=False)

    # --- the pass ------------------------------------------------------------------------------

    def _sync_once(self) -> None:
        events = self.run.events()
        status = self.run.status()
        if not events:
            return
        times = clock(events)
        if not self.cursor.get("parent"):
            self._note(experiment=self._experiment(status.pipeline))
            tags = {"headwater.run": self.run.id, "headwater.pipeline": status.pipeline}
            self._note(parent=self._run_with(tags, self.run.id, times[""][0]))
        parent = self.cursor["parent"]
        for stage in status.stages:
            if stage.fingerprint and (stage.attempts or stage.state not in UNTOUCHED):
                self._stage(stage, times.get(stage.name, times[""]))
        self._summary(parent, status, times[""][1])
        self._note(seq=events[-1]["seq"])

    def _stage(self, stage: StageStatus, span: tuple[int, int]) -> None:
        """Bring one stage's nested run up to date."""
        entry = self.cursor["stages"].setdefault(f"{stage.name}/{stage.fingerprint}", {})
        if entry.get("done"):
            return
        artifact = self.run.store.latest_readable(stage.uses, stage.fingerprint)
        if stage.state not in ("cached", "finished"):
            artifact = None  # an older generation, which this run was told to make again
        if not entry.get("run"):
            entry["run"] = self._run_with(self._tags(stage), stage.name, span[0])
            self._note()
        if not entry.get("params"):
            params = parameters(self.run, stage.name, identity_of(self.run, stage.name))
            self._params(entry["run"], params)
            entry["params"] = True
        if artifact is None:
            self._series(entry, self.run.store.work(stage.uses, stage.fingerprint) / OBSERVED)
        else:
            self._publish(entry, stage, artifact)
        self._state(entry, STATES.get(stage.state, "RUNNING"), span[1])
        if stage.state == "failed":
            self._tag(entry["run"], "headwater.error", stage.reason)
        self._note()

    def _publish(self, entry: dict[str, Any], stage: StageStatus, artifact: Artifact) -> None:
        """All that an artifact says, once."""
        if artifact.manifest["run"].get("id") == self.run.id:
            self._series(entry, artifact.path / OBSERVED)
            self._pictures(entry["run"], artifact)
        when = milliseconds(artifact.manifest["created"])
        figures = sorted(artifact.metrics.items())
        finals = [(metric_key(f"final/{key}"), value, when, 0) for key, value in figures]
        named = [(metric_key(f"{stage.name}.{key}"), value, when, 0) for key, value in figures]
        self._points(entry["run"], finals)
        self._points(self.cursor["parent"], named)
        manifest = (artifact.path / "manifest.json").read_text()
        self._text(entry["run"], manifest, "manifest.json")
        self._tag(entry["run"], "headwater.digest", artifact.digest)
        self._tag(entry["run"], "headwater.path", str(artifact.path))
        commit = artifact.manifest["code"].get("commit") or "unknown"
        self._tag(entry["run"], "mlflow.source.git.commit", commit)
        self._inputs(entry["run"], artifact)
        if is_promotable(artifact.kind):
            self._model(entry["run"], stage.name, artifact, finals)
        entry["done"] = True

    def _summary(self, parent: str, status: RunStatus, end: int) -> None:
        """The pipeline's own run: its state, what it promoted, its report."""
        self._state(self.cursor, STATES.get(status.state, "RUNNING"), end, parent)
        for entry in status.registered:
            name = f"headwater.promoted.{entry['model']}"
            self._tag(parent, name, f"v{entry['version']} {' '.join(entry['aliases'])}")
        report = self.run.folder / "report.html"
        if report.exists():
            stamp = f"{report.stat().st_mtime_ns} {report.stat().st_size}"
            if stamp != self.cursor.get("report"):
                self._text(parent, report.read_text(), "report.html")
                self._note(report=stamp)

    # --- pieces --------------------------------------------------------------------------------

    def _tags(self, stage: StageStatus) -> dict[str, str]:
        return {
            "headwater.run": self.run.id,
            "headwater.stage": stage.name,
            "headwater.fingerprint": stage.fingerprint,
            "headwater.uses": stage.uses,
            "headwater.kind": stage.kind,
            "headwater.cached": str(stage.state == "cached").lower(),
            "mlflow.parentRunId": self.cursor["parent"],
        }

    def _series(self, entry: dict[str, Any], folder: Path) -> None:
        """The points that MLflow has not, in whole lines, oldest first."""
        path = folder / "metrics.jsonl"
        if not path.exists():
            return
        info = path.stat()
        inode, done = self._read.pop(path, (0, 0))
        if inode != info.st_ino or info.st_size < done:
            done = 0  # new to us, or the stage went back to a checkpoint and wrote the file anew
            self._known[path] = self._sent(entry["run"])
        with path.open("rb") as file:
            file.seek(done)
            fresh = file.read()
        fresh = fresh[: fresh.rfind(b"\n") + 1]
        known = self._known[path]
        read = [point for line in fresh.splitlines() for point in points_of(line)]
        points = [p for p in read if not same(p[1], known.get(p[0], {}).get(p[3]))]
        for start in range(0, len(points), BATCH):
            batch = points[start : start + BATCH]
            self._points(entry["run"], batch)
            entry["step"] = batch[-1][3]
            self._note()
        self._read[path] = (info.st_ino, done + len(fresh))
        if read and read[-1][3] >= max((max(steps) for steps in known.values()), default=0):
            known.clear()  # from here on all is new

    def _pictures(self, run_id: str, artifact: Artifact) -> None:
        """The stage's panels: charts as SVG, tables and samples as MLflow tables."""
        series = read_series(artifact.path / OBSERVED / "metrics.jsonl")
        tables = []
        for panel in charts.panels(artifact.path / OBSERVED):
            slug = re.sub(r"\W+", "-", panel["title"].lower()).strip("-") or "panel"
            if grid := charts.grid(panel):
                tables.append({"path": f"tables/{slug}.json", "type": "table"})
                self._text(run_id, json.dumps(grid), tables[-1]["path"])
            elif drawing := charts.draw(panel, series):
                self._text(run_id, charts.standalone(drawing), f"plots/{slug}.svg")
        if tables:
            self._tag(run_id, "mlflow.loggedArtifacts", json.dumps(tables))

    def _clean(self, text: str) -> str:
        return public(redact(text, self.run.secrets()))

    # --- every word to MLflow ------------------------------------------------------------------

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            place = None
            if not is_server(self.uri):
                place = (self.run.store.root / ARTIFACTS / name).as_uri()
            return str(self.client.create_experiment(name, artifact_location=place))
        if found.lifecycle_stage != "active":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _run_with(self, tags: Mapping[str, str], name: str, start: int) -> str:
        """The MLflow run of these tags, made if there is none."""
        words = " and ".join(
            f"tags.`{key}` = '{tags[key]}'"
            for key in ("headwater.run", "headwater.pipeline", "headwater.stage")
            if key in tags
        )
        if print_ := tags.get("headwater.fingerprint"):
            words += f" and tags.`headwater.fingerprint` = '{print_}'"
        experiment = self.cursor["experiment"]
        if found := self.client.search_runs([experiment], words, max_results=1):
            return str(found[0].info.run_id)
        made = self.client.create_run(experiment, start, dict(tags), run_name=name)
        return str(made.info.run_id)

    def _sent(self, run_id: str) -> Sent:
        """The newest value that MLflow has of each key at each step."""
        found: Sent = {}
        for key in self.client.get_run(run_id).data.metrics:
            history = self.client.get_metric_history(run_id, key)
            history.sort(key=lambda point: point.timestamp)
            found[key] = {point.step: point.value for point in history}
        return found

    def _params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        known = [
            Param(metric_key(key)[:250], self._clean(value)[:LONGEST] or "''")
            for key, value in params.items()
        ]
        for start in range(0, len(known), PARAMS):
            self.client.log_batch(run_id, params=known[start : start + PARAMS])

    def _points(self, run_id: str, points: Iterable[Point], model: str | None = None) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(key, v, when, step, model) for key, v, when, step in points]
        if metrics:
            self.client.log_batch(run_id, metrics=metrics)

    def _tag(self, run_id: str, key: str, value: str) -> None:
        self.client.set_tag(run_id, key, self._clean(value)[:LONGEST])

    def _text(self, run_id: str, text: str, path: str) -> None:
        self.client.log_text(run_id, self._clean(text), path)

    def _state(self, entry: dict[str, Any], state: str, end: int, run_id: str = "") -> None:
        if state == entry.get("status", "RUNNING"):
            return
        if state == "RUNNING":
            self.client.update_run(run_id or entry["run"], status=state)
        else:
            self.client.set_terminated(run_id or entry["run"], state, end)
        entry["status"] = state

    def _inputs(self, run_id: str, artifact: Artifact) -> None:
        """What it was made from: artifacts by their digests, and sources outside the store."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        outside = artifact.manifest.get("payload", {}).get("externals", {})
        sources = [(edge, name, digest, "source") for edge, name, digest in externals(outside)]
        sources += [
            (edge, f"{used['uses']}/{used['fingerprint']}", used["digest"], "artifact")
            for edge, found in sorted(artifact.manifest["inputs"].items())
            for used in found
        ]
        inputs = [
            DatasetInput(
                Dataset(name[:500], digest[:36], kind, json.dumps({"digest": digest})),
                [InputTag("mlflow.data.context", edge)],
            )
            for edge, name, digest, kind in sources
        ]
        if inputs:
            self.client.log_inputs(run_id, inputs)

    def _model(self, run_id: str, stage: str, artifact: Artifact, finals: list[Point]) -> None:
        """The model that the stage made, with its figures."""
        from mlflow.entities import LoggedModelOutput

        experiment = self.cursor["experiment"]
        words = f"tags.digest = '{artifact.digest}' and source_run_id = '{run_id}'"
        found = self.client.search_logged_models([experiment], words, max_results=1)
        if found:
            model = found[0]
        else:
            tags = {
                "digest": artifact.digest,
                "fingerprint": artifact.fingerprint,
                "path": self._clean(str(artifact.path)),
            }
            name = re.sub(r"[^\w-]", "_", stage)
            model = self.client.create_logged_model(
                experiment, name, run_id, tags, model_type=artifact.kind
            )
        self._points(run_id, finals, model.model_id)
        outputs = self.client.get_run(run_id).outputs.model_outputs
        if model.model_id not in [output.model_id for output in outputs]:
            self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        self.client.finalize_logged_model(model.model_id, "READY")


def clock(events: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """First and last instant (ms since 1970) of each stage, and of the run under ''."""
    spans: dict[str, tuple[int, int]] = {}
    for event in events:
        now = milliseconds(event["time"])
        names = ("", event["stage"]) if event["event"].startswith("stage.") else ("",)
        for name in names:
            spans[name] = (spans.get(name, (now, now))[0], now)
    return spans


def milliseconds(stamp: str) -> int:
    """An ISO 8601 instant as ms since 1970."""
    return round(timestamp(stamp) * 1000)


def same(value: float, sent: float | None) -> bool:
    """Whether MLflow has that value; of infinities it keeps the largest number."""
    if sent is None or math.isnan(value):
        return sent is not None and math.isnan(sent)
    largest = sys.float_info.max
    return min(max(value, -largest), largest) == sent


def metric_key(name: str) -> str:
    """A name that MLflow takes for a metric or a parameter."""
    return re.sub(r"[^\w./ -]", "_", name, flags=re.ASCII).strip("/")


def points_of(line: bytes) -> Iterator[Point]:
    """The numbers of one line of a series; text and damaged lines give none."""
    try:
        row = json.loads(line)
        step, when = int(row.pop("step")), round(row.pop("time") * 1000)
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    for key, value in row.items():
        try:
            yield metric_key(key), float(value), when, step  # "nan" and "inf" are written so
        except (ValueError, TypeError):
            continue


def identity_of(run: Run, stage: str) -> dict[str, Any]:
    """The parameters that identify a stage's work, as its plan says."""
    return dict(run.payload(stage).get("params", {}))


def externals(declared: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """(edge, name, digest) of what was read from outside the store."""
    for name, digest in sorted(declared.items()):
        yield "source", name, str(digest)
