"""Promotes models: verified, tried, gated, registered, logged, and only then named.

    <store>/registry/<model>/promotions.jsonl    append-only: who, when, from, to, why allowed

The log is the truth and is enough to read models, history and aliases; MLflow's registry is
brought in line with it. A promotion is logged first and its alias moved after, so that a kill
between the two is finished by the next call. A record is a JSON object:

    time user action (promote|rollback) model alias from to(version) uses fingerprint digest
    path kind run stage commit metrics{"stage.metric": value} gates[{gate, metric, value,
    threshold, champion, passed, note}]
"""

from __future__ import annotations

import getpass
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.tracking.mlflow_client import (
    connect,
    is_server,
    mlflow_errors,
    prepare,
    sole_writer,
    tracking_uri,
)
from pipeline.atomic_io import append_line, make_folder, read_lines
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
from pipeline.promotion_gates import (
    Gate,
    check_alias,
    check_metrics_exist,
    flat_metrics,
    require_passed,
)
from pipeline.storage.artifact import Artifact
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

PATIENCE = 60.0  # seconds to wait for another writer
TIMEOUT = 30  # seconds that one request may take: somebody waits, but not for ever
UPLOAD_TIMEOUT = 300  # the same where weights are uploaded
EXPERIMENT = "headwater-models"  # holds uploads of models whose run was not mirrored

Record = dict[str, Any]
Smoke = Callable[[Path], object]
"""Loads the model in a folder and uses it once; raises if that fails."""


class Registry:
    """The models of a store."""

    def __init__(self, store: Store, uri: str | None = None) -> None:
        self.store = store
        self.uri = tracking_uri(store, uri)

    # --- reading: the log alone, no MLflow -----------------------------------------------------

    def models(self) -> list[dict[str, Any]]:
        """[{model, versions, aliases: {alias: version}, updated}], sorted by name."""
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
        """Every promotion and rollback of a model, the oldest first.

        Raises:
            NotFound: no model of that name was ever promoted.
            Failure: the log is damaged.
        """
        log = self._log(model)
        if records := self._read(log):
            return records
        known = [path.parent.name for path in self.store.root.glob("registry/*/promotions.jsonl")]
        raise NotFound(f"no model {model!r} is registered", remedy=did_you_mean(model, known))

    def resolve(self, model: str, alias: str = "champion") -> Artifact:
        """The artifact that an alias names.

        Raises:
            NotFound: no such model or alias.
            CorruptArtifact: it is gone or is not what was promoted.
        """
        names = current(self.history(model))
        if alias not in names:
            raise NotFound(f"{model} has no alias {alias!r}", remedy=did_you_mean(alias, names))
        return self._artifact(names[alias])

    # --- promoting -----------------------------------------------------------------------------

    def promote(
        self,
        artifact: Artifact,
        model: str,
        alias: str = "champion",
        require: Sequence[str] = (),
        stage_metrics: Mapping[str, Mapping[str, float]] | None = None,
        *,
        dry_run: bool = False,
        smoke: Smoke | None = None,
        run: str | None = None,
        user: str | None = None,
    ) -> Record:
        """Give an artifact a model's alias, if every check says yes.

        The same call again changes nothing and gives the same record.

        Args:
            require: gates; see `Gate`.
            stage_metrics: the figures of the run's stages, {stage: {metric: value}}.
            dry_run: check everything, change nothing; the record's version is None if new.
            smoke: tries the model.
            run: the run that promotes; by default the one that made the artifact.
            user: who; by default the account.

        Raises:
            UserError: a name, a gate or a metric that cannot be.
            CorruptArtifact: its bytes are not those that were published.
            GateRefused: a gate said no, or the model cannot be used; `.gates` is the table.
            Failure: MLflow did not answer, or the log cannot be written.
        """
        check_name(model, "a model")
        check_alias(alias)
        gates = [Gate.parse(text) for text in require]
        metrics = flat_metrics(stage_metrics or {})
        check_metrics_exist(gates, metrics)
        _check_model(artifact)
        self._verify(artifact)
        _try(smoke, artifact)
        with nullcontext() if dry_run else sole_writer(self.store, PATIENCE):
            before = self._read(self._log(model))
            holder = current(before).get(alias)
            again = holder is not None and holder["digest"] == artifact.digest
            rival = _previous(before, alias) if again else holder
            lines = [gate.evaluate(metrics, rival and rival["metrics"]) for gate in gates]
            require_passed(lines, model, alias)
            if again and holder is not None:
                return holder if dry_run else self._settle(holder, append=False)
            record = {
                **self._facts(artifact, "promote", model, alias, user),
                "run": run or artifact.manifest["run"].get("id"),
                "from": holder["to"] if holder else None,
                "to": _known_version(before, artifact),
                "metrics": metrics,
                "gates": lines,
            }
            return record if dry_run else self._settle(record)

    def rollback(
        self,
        model: str,
        alias: str = "champion",
        to: int | str | None = None,
        *,
        user: str | None = None,
    ) -> Record:
        """Give the alias back to the version that had it before, or to version `to`.

        Raises:
            NotFound: no such model, alias or version, or nothing came before.
            CorruptArtifact: that version's artifact is gone or damaged.
            Failure: MLflow did not answer, or the log cannot be written.
        """
        check_alias(alias)
        self.history(model)
        with sole_writer(self.store, PATIENCE):
            before = self.history(model)
            holder = current(before).get(alias)
            if holder is None:
                names = current(before)
                raise NotFound(f"{model} has no alias {alias!r}", remedy=did_you_mean(alias, names))
            target = _version(before, to) if to is not None else _previous(before, alias)
            if target is None:
                raise NotFound(f"nothing came before version {holder['to']} of {model}@{alias}")
            artifact = self._artifact(target)
            self._verify(artifact)
            return self._settle(
                {
                    **target,
                    **self._facts(artifact, "rollback", model, alias, user),
                    "from": holder["to"],
                }
            )

    # --- pieces --------------------------------------------------------------------------------

    def _log(self, model: str) -> Path:
        return self.store.root / "registry" / check_name(model, "a model") / "promotions.jsonl"

    def _read(self, log: Path) -> list[Record]:
        try:
            return [json.loads(line) for line in read_lines(log)]
        except ValueError:
            remedy = "restore the file from a backup; artifacts and runs are not affected"
            raise Failure("the promotion log is damaged", where=str(log), remedy=remedy) from None

    def _facts(
        self, artifact: Artifact, action: str, model: str, alias: str, user: str | None
    ) -> Record:
        """What is known of a promotion before it happens."""
        return {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "user": user or _account(),
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

    def _artifact(self, record: Record) -> Artifact:
        """The very artifact of a record, not a newer generation of it."""
        artifact = Artifact.open(self.store.root / record["path"])
        if artifact.digest != record["digest"]:
            raise CorruptArtifact("it is not what was promoted", where=str(artifact.path))
        return artifact

    def _verify(self, artifact: Artifact) -> None:
        if problems := self.store.verify(artifact):
            raise CorruptArtifact(
                "; ".join(problems[:5]),
                where=str(artifact.path),
                remedy="`headwater resume RUN` makes it again",
            )

    # --- MLflow --------------------------------------------------------------------------------

    def _settle(self, record: Record, append: bool = True) -> Record:
        """Register the version, log the promotion, then make MLflow's aliases what the log says.

        All aliases of the model: what a kill left undone is done here too.
        """
        model, log = record["model"], self._log(record["model"])
        with mlflow_errors(self.uri):
            prepare(self.store, self.uri)
            client = connect(self.uri, TIMEOUT)
            if append:
                record = {**record, "to": int(self._register(client, record))}
                make_folder(log.parent)
                append_line(log, json.dumps(record, sort_keys=True))
            for alias, holder in current(self._read(log)).items():
                if alias == record["alias"] or (self.store.root / holder["path"]).exists():
                    self._point(client, model, alias, self._register(client, holder))
        return record

    def _point(self, client: MlflowClient, model: str, alias: str, version: str) -> None:
        """Move an alias, unless it is there, and look whether it moved."""
        if str(client.get_registered_model(model).aliases.get(alias)) == version:
            return
        client.set_registered_model_alias(model, alias, version)
        found = str(client.get_model_version_by_alias(model, alias).version)
        if found != version:
            raise Failure(f"MLflow says {model}@{alias} is version {found}, not {version}")

    def _register(self, client: MlflowClient, record: Record) -> str:
        """The version of a record's artifact; made if there is none (or no longer)."""
        from mlflow.exceptions import MlflowException

        model = record["model"]
        try:
            client.get_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            client.create_registered_model(model)
        words = f"name='{model}' and tags.digest='{record['digest']}'"
        found = client.search_model_versions(words)
        same = [v for v in found if v.tags.get("fingerprint") == record["fingerprint"]]
        if same:
            return str(max(int(version.version) for version in same))
        source, run_id = self._source(client, record)
        tags = {
            key: str(record[key]) for key in ("fingerprint", "digest", "run", "stage", "commit")
        }
        tags |= {f"metric.{key}": str(value) for key, value in record["metrics"].items()}
        made = client.create_model_version(model, source, run_id, tags, await_creation_for=0)
        return str(made.version)

    def _source(self, client: MlflowClient, record: Record) -> tuple[str, str | None]:
        """Where MLflow finds the files: in the store, or uploaded where it cannot see that."""
        folder = self.store.root / record["path"]
        words = (
            f"tags.`headwater.run` = '{record['run']}' and "
            f"tags.`headwater.stage` = '{record['stage']}'"
        )
        everywhere = [found.experiment_id for found in client.search_experiments()]
        mirrored = client.search_runs(everywhere, words, max_results=1)
        run_id = mirrored[0].info.run_id if mirrored else None
        if not is_server(self.uri):
            return folder.as_uri(), run_id
        if run_id is None:
            known = client.get_experiment_by_name(EXPERIMENT)
            home = known.experiment_id if known else client.create_experiment(EXPERIMENT)
            tags = {f"headwater.{key}": str(record[key]) for key in ("run", "stage", "digest")}
            run_id = client.create_run(home, tags=tags, run_name=record["model"]).info.run_id
            client.update_run(run_id, status="FINISHED")  # unlike set_terminated, prints nothing
        connect(self.uri, UPLOAD_TIMEOUT).log_artifacts(run_id, str(folder), "model")
        connect(self.uri, TIMEOUT)  # the time-out is the process's: short again
        return f"runs:/{run_id}/model", run_id


def current(records: Sequence[Record]) -> dict[str, Record]:
    """The newest record of each alias."""
    return {record["alias"]: record for record in records}


def _check_model(artifact: Artifact) -> None:
    if not is_promotable(artifact.kind):
        raise UserError(
            f"{artifact.uses}/{artifact.fingerprint} holds {artifact.kind}, not a model",
            remedy="name the stage that made the model: `headwater promote RUN:STAGE`",
        )


def _try(smoke: Smoke | None, artifact: Artifact) -> None:
    if smoke is None:
        return
    try:
        smoke(artifact.path)
    except HeadwaterError:
        raise
    except Exception as error:
        raise GateRefused(
            f"the model cannot be used: {error}",
            where=f"{artifact.uses}/{artifact.fingerprint}",
            remedy="its stage made something that does not load; see its log",
        ) from error


def _previous(records: Sequence[Record], alias: str) -> Record | None:
    """What had the alias before what has it now: promotions stack up, rollbacks take away."""
    stack: list[Record] = []
    for record in records:
        if record["alias"] != alias:
            continue
        if record["action"] == "rollback":
            places = [i for i, old in enumerate(stack) if old["digest"] == record["digest"]]
            stack = stack[: places[-1]] if places else stack
        stack.append(record)
    return stack[-2] if len(stack) > 1 else None


def _version(records: Sequence[Record], to: int | str) -> Record:
    """The newest record of a version; `3` and `v3` are the same."""
    wanted = str(to).removeprefix("v")
    found = [record for record in records if str(record["to"]) == wanted]
    if not found:
        known = ", ".join(sorted({str(record["to"]) for record in records}))
        raise NotFound(f"no version {to} was ever promoted", remedy=f"known: {known}")
    return found[-1]


def _known_version(records: Sequence[Record], artifact: Artifact) -> int | None:
    versions = [record["to"] for record in records if record["digest"] == artifact.digest]
    return versions[-1] if versions else None


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
