"""Brings MLflow up to date with a run: the content of the runs, and the pass that sends it.

A pass compares the run's status with the cursor of what was sent and sends the difference. Every
operation can be repeated, which makes a replay exact:

    runs and models   are searched by their tags before they are created
    points            are sent again only where MLflow has another value of the key at the step
    files             have the same path and the same bytes

MLflow keeps every point. Where a stage went back to a checkpoint and reached other values (after a
NaN), MLflow shows both the discarded values and the later ones; the HTML report shows only the
later ones.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.report import charts, svg
from launch.report.run_page import stage_parameters
from launch.tracking.cursor import CURSOR, read_cursor, recorded_uri
from launch.tracking.mlflow_client import (
    ARTIFACTS,
    connect,
    ensure_database,
    hide_credentials,
    is_server,
    mlflow_errors,
    relocate,
    writer_lock,
)
from launch.tracking.mlflow_compat import (
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_KEY_LENGTH,
    MAX_PARAM_LENGTH,
    MAX_PARAMS_PER_BATCH,
    TABLES_TAG,
)
from launch.ui.formatting import timestamp
from pipeline.atomic_io import write_atomic
from pipeline.context import read_point, read_series
from pipeline.execution.run import Run
from pipeline.kind import is_promotable
from pipeline.plain_data import to_json
from pipeline.redaction import redact
from pipeline.status import COMPLETED_STATES, RunStatus, StageStatus
from pipeline.storage.artifact import OBSERVED, Artifact

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATES = {
    "finished": "FINISHED",
    "cached": "FINISHED",
    "failed": "FAILED",
    "refused": "FAILED",
    "interrupted": "KILLED",
    "cancelled": "KILLED",
}
NOT_STARTED = ("pending", "waiting", "skipped")

Point = tuple[str, float | None, int, int]
"""Key, value (None if it is not finite), Unix time in ms, step."""

LoggedValues = dict[str, dict[int, float]]
"""Value of each key at each step."""


class RunSynchronizer:
    """Synchronizer of one run with one MLflow, in the mirror's process."""

    def __init__(self, run: Run, uri: str) -> None:
        self.run = run
        self.uri = uri
        self.client: MlflowClient
        self._connected = False
        self._offsets: dict[Path, tuple[int, int]] = {}  # series file -> (inode, bytes sent)
        self._logged: dict[Path, LoggedValues] = {}  # of series files that were reread
        self.cursor = read_cursor(run)
        if recorded_uri(run) != hide_credentials(uri):
            self._reset()

    def try_sync(self, timeout: float = 1.0) -> bool:
        """Make one pass and return whether it succeeded; an error is saved in the cursor, not
        raised."""
        try:
            with mlflow_errors(self.uri), writer_lock(self.run.store, timeout):
                ensure_database(self.run.store, self.uri)
                if not self._connected:
                    relocate(self.run.store, self.uri)
                    self.client = connect(self.uri)
                    self._connected = True
                self._sync_once()
        except Exception as error:
            if getattr(error.__cause__, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                self._reset()  # the database was replaced
            if str(error) != self.cursor.get("problem"):
                sys.stderr.write(self._redact(traceback.format_exc()))
            self._save_cursor(problem=str(error))
            return False
        self._save_cursor(problem="", uri=hide_credentials(self.uri))
        return True

    def _reset(self) -> None:
        self.cursor = {"uri": hide_credentials(self.uri), "stages": {}}
        self._offsets, self._logged = {}, {}

    def _save_cursor(self, **facts: Any) -> None:
        """Update the cursor and write it if it changed."""
        before = json.dumps(self.cursor, sort_keys=True)
        self.cursor.update(facts)
        after = json.dumps(self.cursor, sort_keys=True)
        if before != after or not (self.run.folder / CURSOR).exists():
            write_atomic(self.run.folder / CURSOR, after + "\n", durable=False)

    def _sync_once(self) -> None:
        events = self.run.events()
        status = self.run.status()
        if not events:
            return
        times = event_times(events)
        if not self.cursor.get("parent"):
            self._save_cursor(experiment=self._get_experiment(status.pipeline))
            tags = {"headwater.run": self.run.id, "headwater.pipeline": status.pipeline}
            self._save_cursor(parent=self._find_or_create_run(tags, self.run.id, times[""][0]))
        parent = self.cursor["parent"]
        for stage in status.stages:
            if stage.fingerprint and (stage.attempts or stage.state not in NOT_STARTED):
                self._sync_stage(stage, times.get(stage.name, times[""]))
        self._sync_parent(parent, status, times[""][1])
        self._save_cursor(seq=events[-1]["seq"])

    def _sync_stage(self, stage: StageStatus, span: tuple[int, int]) -> None:
        """Bring the nested run of one stage up to date."""
        entry = self.cursor["stages"].setdefault(f"{stage.name}/{stage.fingerprint}", {})
        if entry.get("done"):
            return
        artifact = self.run.store.latest_readable(stage.uses, stage.fingerprint)
        if stage.state not in COMPLETED_STATES:
            artifact = None  # an older generation, which this run makes again
        if not entry.get("run"):
            entry["run"] = self._find_or_create_run(self._tags(stage), stage.name, span[0])
            self._save_cursor()
        if not entry.get("params"):
            params = stage_parameters(self.run, stage.name, identity_params(self.run, stage.name))
            self._log_params(entry["run"], params)
            entry["params"] = True
        if artifact is None:
            self._send_series(entry, self.run.store.work(stage.uses, stage.fingerprint) / OBSERVED)
        else:
            self._send_artifact(entry, stage, artifact)
        self._set_status(entry, STATES.get(stage.state, "RUNNING"), span[1])
        if stage.state == "failed":
            self._set_tag(entry["run"], "headwater.error", stage.reason)
        self._save_cursor()

    def _send_artifact(self, entry: dict[str, Any], stage: StageStatus, artifact: Artifact) -> None:
        """Send everything of a published artifact, once."""
        if artifact.manifest["run"].get("id") == self.run.id:
            self._send_series(entry, artifact.path / OBSERVED)
            self._send_panels(entry["run"], artifact)
        when = milliseconds(artifact.manifest["created"])
        metrics = sorted(artifact.metrics.items())
        finals = [(metric_key(f"final/{key}"), value, when, 0) for key, value in metrics]
        summary = [(metric_key(f"{stage.name}.{key}"), value, when, 0) for key, value in metrics]
        self._log_points(entry["run"], finals)
        self._log_points(self.cursor["parent"], summary)
        manifest = (artifact.path / "manifest.json").read_text()
        self._log_text(entry["run"], manifest, "manifest.json")
        self._set_tag(entry["run"], "headwater.digest", artifact.digest)
        self._set_tag(entry["run"], "headwater.path", str(artifact.path))
        commit = artifact.manifest["code"].get("commit") or "unknown"
        self._set_tag(entry["run"], "mlflow.source.git.commit", commit)
        self._log_inputs(entry["run"], artifact)
        if is_promotable(artifact.kind):
            self._log_model(entry["run"], stage.name, artifact, finals)
        entry["done"] = True

    def _sync_parent(self, parent: str, status: RunStatus, end: int) -> None:
        """Update the pipeline's run: status, promoted models, report."""
        self._set_status(self.cursor, STATES.get(status.state, "RUNNING"), end, parent)
        for entry in status.registered:
            name = f"headwater.promoted.{entry['model']}"
            self._set_tag(parent, name, f"v{entry['version']} {' '.join(entry['aliases'])}")
        report = self.run.folder / "report.html"
        if report.exists():
            stamp = f"{report.stat().st_mtime_ns} {report.stat().st_size}"
            if stamp != self.cursor.get("report"):
                self._log_text(parent, report.read_text(), "report.html")
                self._save_cursor(report=stamp)

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

    def _send_series(self, entry: dict[str, Any], folder: Path) -> None:
        """Send the points that MLflow lacks, in whole lines, oldest first."""
        path = folder / "metrics.jsonl"
        if not path.exists():
            return
        info = path.stat()
        inode, done = self._offsets.pop(path, (0, 0))
        if inode != info.st_ino or info.st_size < done:
            done = 0  # first read, or the stage went back to a checkpoint and rewrote the file
            self._logged[path] = self._get_logged_values(entry["run"])
        with path.open("rb") as file:
            file.seek(done)
            appended = file.read()
        appended = appended[: appended.rfind(b"\n") + 1]
        known = self._logged[path]
        read = [point for line in appended.split(b"\n") for point in parse_points(line)]
        points = [p for p in read if p[1] != known.get(p[0], {}).get(p[3])]
        for start in range(0, len(points), MAX_METRICS_PER_BATCH):
            batch = points[start : start + MAX_METRICS_PER_BATCH]
            self._log_points(entry["run"], batch)
            entry["step"] = batch[-1][3]
            self._save_cursor()
        self._offsets[path] = (info.st_ino, done + len(appended))
        if read and read[-1][3] >= max((max(steps) for steps in known.values()), default=0):
            known.clear()  # all later points are new

    def _send_panels(self, run_id: str, artifact: Artifact) -> None:
        """Send the panels of a stage: charts as SVG, tables and samples as MLflow tables."""
        series = read_series(artifact.path / OBSERVED / "metrics.jsonl")
        tables = []
        for panel in charts.read_panels(artifact.path / OBSERVED, self.run.secrets()):
            slug = re.sub(r"\W+", "-", panel["title"].lower()).strip("-") or "panel"
            if grid := charts.table_of(panel):
                tables.append({"path": f"tables/{slug}.json", "type": "table"})
                self._log_text(run_id, to_json(grid), tables[-1]["path"])
            elif drawing := charts.draw(panel, series):
                self._log_text(run_id, svg.standalone(drawing), f"plots/{slug}.svg")
        if tables:
            self._set_tag(run_id, TABLES_TAG, json.dumps(tables))

    def _redact(self, text: str) -> str:
        return hide_credentials(redact(text, self.run.secrets()))

    def _get_experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = None
            if not is_server(self.uri):
                location = (self.run.store.root / ARTIFACTS / name).as_uri()
            return str(self.client.create_experiment(name, artifact_location=location))
        if found.lifecycle_stage != "active":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _find_or_create_run(self, tags: Mapping[str, str], name: str, start: int) -> str:
        """Return the MLflow run with these tags; create it if it does not exist."""
        query = " and ".join(
            f"tags.`{key}` = '{tags[key]}'"
            for key in ("headwater.run", "headwater.pipeline", "headwater.stage")
            if key in tags
        )
        if fingerprint := tags.get("headwater.fingerprint"):
            query += f" and tags.`headwater.fingerprint` = '{fingerprint}'"
        experiment = self.cursor["experiment"]
        if found := self.client.search_runs([experiment], query, max_results=1):
            return str(found[0].info.run_id)
        created = self.client.create_run(experiment, start, dict(tags), run_name=name)
        return str(created.info.run_id)

    def _get_logged_values(self, run_id: str) -> LoggedValues:
        """Return the newest value of each key at each step in MLflow."""
        found: LoggedValues = {}
        for key in self.client.get_run(run_id).data.metrics:
            history = self.client.get_metric_history(run_id, key)
            history.sort(key=lambda point: point.timestamp)
            found[key] = {point.step: point.value for point in history}
        return found

    def _log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        known = [
            Param(
                metric_key(key)[:MAX_PARAM_KEY_LENGTH],
                self._redact(value)[:MAX_PARAM_LENGTH] or "''",
            )
            for key, value in params.items()
        ]
        for start in range(0, len(known), MAX_PARAMS_PER_BATCH):
            self.client.log_batch(run_id, params=known[start : start + MAX_PARAMS_PER_BATCH])

    def _log_points(self, run_id: str, points: Iterable[Point], model: str | None = None) -> None:
        """Log the points that have a value: MLflow shows a gap at the others."""
        from mlflow.entities import Metric

        known = (point for point in points if point[1] is not None)
        metrics = [Metric(key, v, when, step, model) for key, v, when, step in known]
        if metrics:
            self.client.log_batch(run_id, metrics=metrics)

    def _set_tag(self, run_id: str, key: str, value: str) -> None:
        self.client.set_tag(run_id, key, self._redact(value)[:MAX_PARAM_LENGTH])

    def _log_text(self, run_id: str, text: str, path: str) -> None:
        self.client.log_text(run_id, self._redact(text), path)

    def _set_status(self, entry: dict[str, Any], state: str, end: int, run_id: str = "") -> None:
        if state == entry.get("status", "RUNNING"):
            return
        if state == "RUNNING":
            self.client.update_run(run_id or entry["run"], status=state)
        else:
            self.client.set_terminated(run_id or entry["run"], state, end)
        entry["status"] = state

    def _log_inputs(self, run_id: str, artifact: Artifact) -> None:
        """Log the inputs of an artifact: other artifacts, and sources outside the store."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        outside = artifact.manifest.get("payload", {}).get("externals", {})
        sources = [
            (edge, name, digest, "source") for edge, name, digest in external_sources(outside)
        ]
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

    def _log_model(self, run_id: str, stage: str, artifact: Artifact, finals: list[Point]) -> None:
        """Log the model of a stage with its metrics."""
        from mlflow.entities import LoggedModelOutput

        experiment = self.cursor["experiment"]
        query = f"tags.digest = '{artifact.digest}' and source_run_id = '{run_id}'"
        found = self.client.search_logged_models([experiment], query, max_results=1)
        if found:
            model = found[0]
        else:
            tags = {
                "digest": artifact.digest,
                "fingerprint": artifact.fingerprint,
                "path": self._redact(str(artifact.path)),
            }
            name = re.sub(r"[^\w-]", "_", stage)
            model = self.client.create_logged_model(
                experiment, name, run_id, tags, model_type=artifact.kind
            )
        self._log_points(run_id, finals, model.model_id)
        outputs = self.client.get_run(run_id).outputs.model_outputs
        if model.model_id not in [output.model_id for output in outputs]:
            self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        self.client.finalize_logged_model(model.model_id, "READY")


def event_times(events: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Return the first and last time (Unix, ms) of each stage, and of the run under the key ''."""
    spans: dict[str, tuple[int, int]] = {}
    for event in events:
        now = milliseconds(event["time"])
        names = ("", event["stage"]) if event["event"].startswith("stage.") else ("",)
        for name in names:
            spans[name] = (spans.get(name, (now, now))[0], now)
    return spans


def milliseconds(stamp: str) -> int:
    """Convert an ISO 8601 time to Unix time in ms."""
    return round(timestamp(stamp) * 1000)


def metric_key(name: str) -> str:
    """Return a name that MLflow accepts for a metric or a parameter."""
    return re.sub(r"[^\w./ -]", "_", name, flags=re.ASCII).strip("/")


def parse_points(line: bytes) -> Iterator[Point]:
    """Yield the values of one line of a series; damaged lines are skipped."""
    row = read_point(line)
    if row and row.get("time") is not None:
        step, when = int(row.pop("step")), round(row.pop("time") * 1000)
        yield from ((metric_key(key), value, when, step) for key, value in row.items())


def identity_params(run: Run, stage: str) -> dict[str, Any]:
    """Return the parameters that identify a stage's artifact, from its plan."""
    return dict(run.payload(stage).get("params", {}))


def external_sources(declared: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield (edge, name, digest) of each source outside the store."""
    for name, digest in sorted(declared.items()):
        yield "source", name, str(digest)
