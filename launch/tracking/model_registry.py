"""Registry of promoted models: verified, smoke-tested, gated, logged, then given an alias.

    <store>/registry/<model>/promotions.jsonl    append-only: user, time, versions, gates

The log is authoritative and suffices to read models, history and aliases; MLflow's registry is
brought in line with it. A promotion is logged before its alias is moved, so that the next call
completes a promotion that was killed in between. A record is a JSON object:

    time user action (promote|rollback) model alias from to(version) uses fingerprint digest
    path kind run stage commit metrics{"stage.metric": value} gates[{gate, metric, value,
    threshold, champion, passed, note}]
"""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.tracking.gate_evaluation import (
    check_metrics_exist,
    evaluate_gate,
    flat_metrics,
    require_passed,
)
from launch.tracking.mlflow_client import (
    connect,
    ensure_database,
    is_server,
    mlflow_errors,
    relocate,
    tracking_uri,
    writer_lock,
)
from launch.tracking.mlflow_compat import mark_finished
from pipeline.atomic_io import append_line, make_folder, read_lines
from pipeline.checksum import parse_record, with_checksum
from pipeline.errors import (
    CorruptArtifact,
    Failure,
    GateRefused,
    HeadwaterError,
    NotFound,
    UserError,
    did_you_mean,
)
from pipeline.kind import is_promotable
from pipeline.naming import check_name
from pipeline.plain_data import read_numbers, to_json, to_plain
from pipeline.promotion_gates import Gate, check_alias
from pipeline.storage.artifact import Artifact
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCK_TIMEOUT = 60.0  # seconds to wait for another writer
TIMEOUT = 30  # seconds per request
UPLOAD_TIMEOUT = 300  # seconds per request that uploads weights
EXPERIMENT = "headwater-models"  # of uploaded models whose run was not mirrored

Record = dict[str, Any]
SmokeTest = Callable[[Path], object]
"""Function that loads the model in a folder and uses it once; raises if that fails."""


class Registry:
    """Model registry of a store."""

    def __init__(self, store: Store, uri: str | None = None) -> None:
        self.store = store
        self.uri = tracking_uri(store, uri)

    def models(self) -> list[dict[str, Any]]:
        """Return [{model, versions, aliases: {alias: version}, updated}], sorted by name."""
        found = []
        for log in sorted(self.store.root.glob("registry/*/promotions.jsonl")):
            records = self.history(log.parent.name)
            found.append(
                {
                    "model": log.parent.name,
                    "versions": sorted({record["to"] for record in records}),
                    "aliases": {name: now["to"] for name, now in sorted(current(records).items())},
                    "updated": records[-1]["time"],
                }
            )
        return found

    def history(self, model: str) -> list[Record]:
        """Return every promotion and rollback of a model, oldest first.

        Raises:
            NotFound: no model of this name was ever promoted.
            Failure: the log is corrupt.
        """
        log = self._log(model)
        if records := self._read(log):
            return records
        known = [path.parent.name for path in self.store.root.glob("registry/*/promotions.jsonl")]
        raise NotFound(f"no model {model!r} is registered", remedy=did_you_mean(model, known))

    def resolve(self, model: str, alias: str = "champion") -> Artifact:
        """Return the artifact that an alias names.

        Raises:
            NotFound: no such model or alias.
            CorruptArtifact: it is gone or differs from what was promoted.
        """
        names = current(self.history(model))
        if alias not in names:
            raise NotFound(f"{model} has no alias {alias!r}", remedy=did_you_mean(alias, names))
        return self._open_artifact(names[alias])

    def promote(
        self,
        artifact: Artifact,
        model: str,
        alias: str = "champion",
        require: Sequence[str] = (),
        stage_metrics: Mapping[str, Mapping[str, float | None]] | None = None,
        *,
        dry_run: bool = False,
        smoke_test: SmokeTest | None = None,
        run: str | None = None,
        user: str | None = None,
    ) -> Record:
        """Move a model's alias to an artifact if every check passes; return the record.

        Repeating the call changes nothing and returns the same record.

        Args:
            require: gates; see `Gate`.
            stage_metrics: metrics of the run's stages, {stage: {metric: value}}.
            dry_run: run all checks and change nothing; the record's version is None if new.
            smoke_test: loads the model and uses it once.
            run: run that promotes. Default: the one that made the artifact.
            user: user name. Default: the account.

        Raises:
            UserError: an invalid name, gate or metric.
            CorruptArtifact: the bytes differ from those that were published.
            GateRefused: a gate or the smoke test failed; `.gates` is the table.
            Failure: MLflow did not answer, or the log cannot be written.
        """
        check_name(model, "a model")
        check_alias(alias)
        gates = [Gate.parse(text) for text in require]
        metrics = flat_metrics(stage_metrics or {})
        check_metrics_exist(gates, stage_metrics or {})
        _require_model(artifact)
        self._verify(artifact)
        _run_smoke_test(smoke_test, artifact)
        with nullcontext() if dry_run else writer_lock(self.store, LOCK_TIMEOUT):
            before = self._read(self._log(model))
            holder = current(before).get(alias)
            repeated = holder is not None and holder["digest"] == artifact.digest
            champion = _previous_holder(before, alias) if repeated else holder
            lines = [
                evaluate_gate(gate, metrics, champion and champion["metrics"]) for gate in gates
            ]
            require_passed(lines, model, alias)
            if repeated and holder is not None:
                return holder if dry_run else self._commit(holder, append=False)
            record = {
                **self._describe(artifact, "promote", model, alias, user),
                "run": run or artifact.manifest["run"].get("id"),
                "from": holder["to"] if holder else None,
                "to": _known_version(before, artifact),
                "metrics": metrics,
                "gates": lines,
            }
            return record if dry_run else self._commit(record)

    def rollback(
        self,
        model: str,
        alias: str = "champion",
        to: int | str | None = None,
        *,
        user: str | None = None,
    ) -> Record:
        """Move the alias back to the version that held it before, or to version `to`.

        Raises:
            NotFound: no such model, alias or version, or no earlier version.
            CorruptArtifact: that version's artifact is gone or corrupt.
            Failure: MLflow did not answer, or the log cannot be written.
        """
        check_alias(alias)
        self.history(model)
        with writer_lock(self.store, LOCK_TIMEOUT):
            before = self.history(model)
            holder = current(before).get(alias)
            if holder is None:
                names = current(before)
                raise NotFound(f"{model} has no alias {alias!r}", remedy=did_you_mean(alias, names))
            target = (
                _find_version(before, to) if to is not None else _previous_holder(before, alias)
            )
            if target is None:
                raise NotFound(f"version {holder['to']} is the first of {model}@{alias}")
            artifact = self._open_artifact(target)
            self._verify(artifact)
            return self._commit(
                {
                    **target,
                    **self._describe(artifact, "rollback", model, alias, user),
                    "from": holder["to"],
                }
            )

    def _log(self, model: str) -> Path:
        return self.store.root / "registry" / check_name(model, "a model") / "promotions.jsonl"

    def _read(self, log: Path) -> list[Record]:
        try:
            records = [parse_record(line) for line in read_lines(log)]
            return [{**record, "metrics": read_numbers(record["metrics"])} for record in records]
        except (ValueError, KeyError, TypeError, AttributeError):
            remedy = "restore the file from a backup; artifacts and runs are not affected"
            raise Failure("the promotion log is corrupt", where=str(log), remedy=remedy) from None

    def _describe(
        self, artifact: Artifact, action: str, model: str, alias: str, user: str | None
    ) -> Record:
        """Return the fields of a record that do not depend on the registry."""
        return {
            "time": _now(),
            "user": user or _user_name(),
            "action": action,
            "model": model,
            "alias": alias,
            "uses": artifact.uses,
            "kind": artifact.kind,
            "fingerprint": artifact.fingerprint,
            "digest": artifact.digest,
            "path": os.path.relpath(artifact.path, self.store.root),
            "stage": artifact.manifest["run"].get("stage"),
            "commit": artifact.manifest["code"].get("commit"),
        }

    def _open_artifact(self, record: Record) -> Artifact:
        """Return exactly the artifact of a record, not a newer generation of it."""
        artifact = Artifact.open(self.store.root / record["path"])
        if artifact.digest != record["digest"]:
            raise CorruptArtifact(
                "the artifact differs from what was promoted", where=str(artifact.path)
            )
        return artifact

    def _verify(self, artifact: Artifact) -> None:
        if problems := self.store.verify(artifact):
            raise CorruptArtifact(
                "; ".join(problems[:5]),
                where=str(artifact.path),
                remedy="`headwater resume RUN` produces it again",
            )

    def _commit(self, record: Record, append: bool = True) -> Record:
        """Register the version, log the promotion, then move MLflow's aliases to match the log.

        All aliases of the model are moved, which completes promotions that were killed. Versions
        that MLflow lost are registered before the new one, in their order, so that they get their
        numbers back where MLflow counts from 1 again; another number is logged.
        """
        model, log = record["model"], self._log(record["model"])
        with mlflow_errors(self.uri):
            ensure_database(self.store, self.uri)
            relocate(self.store, self.uri)
            client = connect(self.uri, TIMEOUT)
            held = current(self._read(log))
            for alias, holder in sorted(held.items(), key=lambda item: int(item[1]["to"])):
                if (self.store.root / holder["path"]).exists():
                    version = self._register(client, holder)
                    if version != holder["to"]:
                        moved = {"from": holder["to"], "to": version, "user": _user_name()}
                        held[alias] = self._append({**holder, **moved, "time": _now()})
            if append:
                version = self._register(client, record)
                held[record["alias"]] = self._append({**record, "to": version})
            for alias, holder in held.items():
                if alias == record["alias"] or (self.store.root / holder["path"]).exists():
                    self._move_alias(client, model, alias, str(holder["to"]))
        return held[record["alias"]]

    def _append(self, record: Record) -> Record:
        log = self._log(record["model"])
        make_folder(log.parent)
        append_line(log, to_json(with_checksum(to_plain(record)), sort_keys=True))
        return record

    def _move_alias(self, client: MlflowClient, model: str, alias: str, version: str) -> None:
        """Move an alias to a version and check that it moved."""
        if str(client.get_registered_model(model).aliases.get(alias)) == version:
            return
        client.set_registered_model_alias(model, alias, version)
        found = str(client.get_model_version_by_alias(model, alias).version)
        if found != version:
            raise Failure(f"MLflow reports version {found} for {model}@{alias}, expected {version}")

    def _register(self, client: MlflowClient, record: Record) -> int:
        """Return the version of a record's artifact; create it if it does not exist.

        After a model was deleted, MLflow counts its versions from 1 again: a number that the log
        gives to another artifact is used up by a version that is deleted at once.
        """
        from mlflow.exceptions import MlflowException

        model = record["model"]
        try:
            client.get_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            client.create_registered_model(model)
        query = f"name='{model}' and tags.digest='{record['digest']}'"
        found = client.search_model_versions(query)
        same = [v for v in found if v.tags.get("fingerprint") == record["fingerprint"]]
        if numbers := {int(version.version) for version in same}:
            return int(record["to"]) if record["to"] in numbers else max(numbers)
        source, run_id = self._source(client, record)
        tags = {
            key: str(record[key]) for key in ("fingerprint", "digest", "run", "stage", "commit")
        }
        known = {key: value for key, value in record["metrics"].items() if value is not None}
        tags |= {f"metric.{key}": str(value) for key, value in known.items()}
        logged = {old["to"]: _identity(old) for old in self._read(self._log(model))}
        while True:
            made = client.create_model_version(model, source, run_id, tags, await_creation_for=0)
            number = int(made.version)
            if logged.get(number, _identity(record)) == _identity(record):
                return number
            client.delete_model_version(model, str(number))

    def _source(self, client: MlflowClient, record: Record) -> tuple[str, str | None]:
        """Return the URI of the files, in the store or uploaded to a server, and the MLflow run."""
        folder = self.store.root / record["path"]
        query = (
            f"tags.`headwater.run` = '{record['run']}' and "
            f"tags.`headwater.stage` = '{record['stage']}'"
        )
        experiments = [found.experiment_id for found in client.search_experiments()]
        mirrored = client.search_runs(experiments, query, max_results=1)
        run_id = mirrored[0].info.run_id if mirrored else None
        if not is_server(self.uri):
            return folder.as_uri(), run_id
        if run_id is None:
            known = client.get_experiment_by_name(EXPERIMENT)
            experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT)
            tags = {f"headwater.{key}": str(record[key]) for key in ("run", "stage", "digest")}
            run_id = client.create_run(experiment, tags=tags, run_name=record["model"]).info.run_id
            mark_finished(client, run_id)
        connect(self.uri, UPLOAD_TIMEOUT).log_artifacts(run_id, str(folder), "model")
        connect(self.uri, TIMEOUT)  # the timeout is per process
        return f"runs:/{run_id}/model", run_id


def current(records: Sequence[Record]) -> dict[str, Record]:
    """Return the newest record of each alias."""
    return {record["alias"]: record for record in records}


def _require_model(artifact: Artifact) -> None:
    if not is_promotable(artifact.kind):
        raise UserError(
            f"{artifact.uses}/{artifact.fingerprint} holds {artifact.kind}, not a model",
            remedy="name the stage that made the model: `headwater promote RUN:STAGE`",
        )


def _run_smoke_test(smoke_test: SmokeTest | None, artifact: Artifact) -> None:
    if smoke_test is None:
        return
    try:
        smoke_test(artifact.path)
    except HeadwaterError:
        raise
    except Exception as error:
        raise GateRefused(
            f"the model failed its smoke test: {error}",
            where=f"{artifact.uses}/{artifact.fingerprint}",
            remedy="the artifact of its stage does not load; see the stage's log",
        ) from error


def _previous_holder(records: Sequence[Record], alias: str) -> Record | None:
    """Return the record that held an alias before the current one; a rollback undoes promotions."""
    stack: list[Record] = []
    for record in records:
        if record["alias"] != alias:
            continue
        if record["action"] == "rollback":
            places = [i for i, old in enumerate(stack) if old["digest"] == record["digest"]]
            stack = stack[: places[-1]] if places else stack
        if stack and stack[-1]["digest"] == record["digest"]:  # the same under another number
            stack.pop()
        stack.append(record)
    return stack[-2] if len(stack) > 1 else None


def _find_version(records: Sequence[Record], to: int | str) -> Record:
    """Return the newest record of a version; `3` and `v3` are the same."""
    wanted = str(to).removeprefix("v")
    found = [record for record in records if str(record["to"]) == wanted]
    if not found:
        known = ", ".join(sorted({str(record["to"]) for record in records}))
        raise NotFound(f"no version {to} was ever promoted", remedy=f"known: {known}")
    return found[-1]


def _known_version(records: Sequence[Record], artifact: Artifact) -> int | None:
    versions = [record["to"] for record in records if record["digest"] == artifact.digest]
    return versions[-1] if versions else None


def _identity(record: Record) -> tuple[str, str]:
    return record["digest"], record["fingerprint"]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container user without a name
        return str(os.getuid())
