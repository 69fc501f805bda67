"""The folder of a run.

    <store>/runs/<run-id>/run.yaml        the resolved pipeline
    <store>/runs/<run-id>/plan.json       the newest plan
    <store>/runs/<run-id>/journal.jsonl   the events (`pipeline.execution.journal`)
    <store>/runs/<run-id>/cancel          a request to stop
    <store>/runs/<run-id>/stages/<name>/attempt-K/

A driver that dies leaves a run whose status is `interrupted`, because nothing renews its lease.
"""

from __future__ import annotations

import calendar
import difflib
import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pipeline import atomic_io
from pipeline.checksum import parse_record, with_checksum
from pipeline.errors import Failure, NotFound, UserError
from pipeline.execution.journal import Journal
from pipeline.execution.plan import Plan
from pipeline.naming import check_name
from pipeline.plain_data import read_numbers, to_json, to_plain
from pipeline.redaction import secret_names
from pipeline.spec.pipeline_spec import Spec
from pipeline.spec.spec_checker import spec_from_resolved
from pipeline.status import (
    COMPLETED_STATES,
    Event,
    RunStatus,
    StageStatus,
    derive_status,
    format_timestamp,
    last_active_time,
    mark_interrupted,
    with_elapsed_time,
)
from pipeline.storage.artifact import hash_file
from pipeline.storage.store import Store

# Both lists are sorted, so that ids sort by the second and the 64th of a second they stand for.
_WORDS = """
able agile airy amber ample azure bold brave brief bright brisk broad calm clear cosy crisp
deep deft eager early even fair fast fine fleet fond free fresh gentle glad grand green happy
high humble keen kind large lean light lively long loyal lucid merry mild neat noble old open
plain proud quick quiet ready rich round sage silver wise
|
adder badger bass bear beaver bison boar carp cat cod crab crane crow deer dove duck eagle eel
egret elk falcon finch fox frog gecko goat goose gull hare hawk hen heron horse ibis jay kite
koala lark lion llama loon lynx mink mole moose mouse newt orca otter owl panda perch pike plover
puffin quail raven robin salmon seal shrew swan trout wolf
"""
_ADJECTIVES, _NOUNS = (half.split() for half in _WORDS.split("|"))


class Run:
    """A run of a store; opening it reads nothing."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store = store
        self.id = check_name(run_id, "a run")
        self.journal = Journal(self.folder / "journal.jsonl", self.secrets)
        self._secrets: frozenset[str] | None = None

    def __repr__(self) -> str:
        return f"Run({self.id!r})"

    @classmethod
    def create(cls, store: Store, spec: Spec, plan: Plan, origin: str | None = None) -> Run:
        """Create the folder of a new, pending run.

        Args:
            origin: the run that this one continues with a changed configuration.
        """
        atomic_io.make_folder(store.root / "runs")
        before = [_instant_of(folder.name) for folder in atomic_io.list_folder(store.root / "runs")]
        # Another host's clock may be ahead: an id sorts after those that exist, not by the clock.
        instant = max(time.time(), max(before, default=0.0) + 1 / len(_NOUNS))
        while True:
            run = cls(store, new_run_id(instant))
            try:
                with atomic_io.disk_errors(run.folder):
                    run.folder.mkdir()  # claims the id
                    atomic_io.fsync_path(run.folder.parent)
                break
            except FileExistsError:
                instant += 1 / len(_NOUNS)
        resolved = yaml.safe_dump(to_plain(spec.resolved), sort_keys=False, allow_unicode=True)
        atomic_io.write_atomic(run.folder / "run.yaml", resolved)
        facts = {"pipeline": spec.name, "store": str(store.root), "root": str(Path.cwd())}
        digest = hash_file(run.folder / "run.yaml")
        run.append("run.created", **facts, origin=origin, run_yaml_sha256=digest)
        run.write_plan(plan)
        return run

    @classmethod
    def find(cls, store: Store, name: str = "latest") -> Run:
        """Return the run with that id, or whose id begins or ends like that, or the `latest`.

        Raises:
            NotFound: no run matches, or several do.
        """
        ids, where = [run.id for run in list_runs(store)], str(store.root)
        if not ids:
            remedy = "start one with `headwater run CONFIG`, or name a store with --store"
            raise NotFound("the store holds no runs", where=where, remedy=remedy)
        if name in ids or name == "latest":
            return cls(store, ids[-1] if name == "latest" else name)
        matches = [known for known in ids if known.startswith(name) or known.endswith(f"-{name}")]
        if len(matches) == 1:
            return cls(store, matches[0])
        if matches:
            raise NotFound(f"several runs match {name!r}: {', '.join(matches[-5:])}")
        near = difflib.get_close_matches(name, ids, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]}?" if near else "`headwater list` shows all runs"
        raise NotFound(f"no run {name!r}", where=where, remedy=remedy)

    @property
    def folder(self) -> Path:
        """The folder of everything about the run."""
        return self.store.root / "runs" / self.id

    @property
    def cancel_file(self) -> Path:
        """The file whose existence stops the run at the next safe point."""
        return self.folder / "cancel"

    def attempt_dir(self, stage: str, attempt: int) -> Path:
        """Return the folder of one attempt's logs and stack dumps."""
        return self.folder / "stages" / check_name(stage, "a stage") / f"attempt-{attempt}"

    def resolved(self) -> dict[str, Any]:
        """Return the resolved pipeline, the content of run.yaml.

        Raises:
            Failure: its bytes are not those that were written when the run was created.
        """
        path = self.folder / "run.yaml"
        recorded = next((event.get("run_yaml_sha256") for event in self.events()), None)
        if recorded not in (None, hash_file(path)):
            remedy = "restore it, or start the pipeline file again"
            raise Failure("its bytes changed", where=str(path), remedy=remedy)
        return dict(yaml.safe_load(path.read_text()))

    def spec(self) -> Spec:
        """Check the run's pipeline again and return it."""
        return spec_from_resolved(self.resolved())

    def plan(self) -> Plan:
        """Return the newest plan.

        Raises:
            Failure: no plan exists (the creation of the run was interrupted), or it is damaged.
        """
        with suppress(KeyError, TypeError):
            return Plan.from_json(self._raw_plan())
        remedy = "its creation was interrupted, or its plan.json is damaged: start it again"
        raise Failure(f"run {self.id} has no plan", where=str(self.folder), remedy=remedy)

    def payload(self, stage: str) -> dict[str, Any]:
        """Return the identity of a stage's work by the newest plan; empty for unknown stages."""
        stages = self._raw_plan().get("stages", ())
        return next((dict(s.get("payload") or {}) for s in stages if s["name"] == stage), {})

    def _raw_plan(self) -> dict[str, Any]:
        path, absent = self.folder / "plan.json", (*atomic_io.NOT_FOUND, ValueError)
        with atomic_io.disk_errors(path, to="read"), suppress(*absent):
            return parse_record(path.read_bytes())
        return {}

    def write_plan(self, plan: Plan) -> None:
        """Replace the plan: a resumed run finds other stages cached than before."""
        described = to_plain(plan.to_json())
        written = to_json(with_checksum(described), indent=1)
        atomic_io.write_atomic(self.folder / "plan.json", written + "\n")
        keys = ("name", "uses", "kind", "verdict", "reason", "fingerprint")
        stages = [{key: stage.get(key, "") for key in keys} for stage in described["stages"]]
        self.append("plan", stages=stages)

    # --- driving -------------------------------------------------------------------------------

    def open(self, **facts: Any) -> None:
        """Become the run's driver: take its lease and write `run.started`.

        If the driver is on another machine and seems dead, its lease is watched until it expires.

        Raises:
            UserError: another driver is executing this run.
        """
        lease = self.store.lease("run", self.id, owner=self.id)
        patience = lease.expiry + 2 * lease.heartbeat
        if not lease.acquire() and (lease.alive() or not lease.acquire(patience)):
            holder = lease.holder() or {}
            place = f"process {holder.get('pid', '?')} on {holder.get('host', 'another machine')}"
            remedy = f"`headwater status {self.id} --watch` shows it"
            raise UserError(f"run {self.id} is being executed already: {place}", remedy=remedy)
        status = derive_status(self.id, self.events())
        if status.state != "pending":
            self.cancel_file.unlink(missing_ok=True)  # it was meant for the driver before
        self.journal.lease = lease
        for stage in status.stages:
            if stage.began:  # the driver died during this attempt
                seen = format_timestamp(last_active_time(self._add_store_facts(stage)))
                note = {"stage": stage.name, "attempt": stage.attempts, "time": seen}
                self.append("stage.interrupted", **note)
        self.append("run.started", pid=os.getpid(), host=os.uname().nodename, **facts)

    def close(self) -> None:
        """Stop being the driver; write `run.finished` or `run.interrupted` before."""
        if self.journal.lease:
            self.journal.lease.release()
        self.journal.lease = None

    def append(self, event: str, **fields: Any) -> Event:
        """Write one event to the journal; see `Journal.append`."""
        return self.journal.append(event, **fields)

    def events(self) -> list[Event]:
        """Return the events of the journal."""
        return self.journal.events()

    def secrets(self) -> frozenset[str]:
        """Return the names of the secrets that the pipeline refers to."""
        if self._secrets is None:
            try:
                text = (self.folder / "run.yaml").read_text(errors="backslashreplace")
                self._secrets = secret_names(text)
            except FileNotFoundError:
                return frozenset()
        return self._secrets

    def has_driver(self) -> bool:
        """Return whether a driver seems to be executing the run."""
        return self.store.lease("run", self.id, owner="reader").alive()

    def status(self) -> RunStatus:
        """Derive the state of the run from its journal and the store."""
        status = derive_status(self.id, self.events())
        if status.state == "running" and not self.has_driver():
            status = mark_interrupted(status)
        stages = [self._add_store_facts(stage) for stage in status.stages]
        return replace(status, stages=stages, store=str(self.store.root))  # it may have moved

    def _add_store_facts(self, stage: StageStatus) -> StageStatus:
        """Add facts from the store: the artifact's folder and metrics, or live progress."""
        if not stage.fingerprint:
            return stage
        if stage.state in COMPLETED_STATES:
            artifact = self.store.latest_readable(stage.uses, stage.fingerprint)
            if artifact is None:
                return stage
            metrics = stage.metrics or artifact.metrics
            seconds = artifact.manifest["seconds"] if stage.seconds is None else stage.seconds
            return replace(stage, path=str(artifact.path), metrics=metrics, seconds=seconds)
        work = self.store.work(stage.uses, stage.fingerprint)
        progress: dict[str, Any] = atomic_io.read_json(work / "observed" / "progress.json", {})
        known = read_numbers(progress) | {key: progress[key] for key in progress if key == "unit"}
        return with_elapsed_time(replace(stage, progress=known))


def list_runs(store: Store) -> list[Run]:
    """Return all runs of a store, in the order in which they were created."""
    journals = sorted(store.root.glob("runs/*/journal.jsonl"))
    return [Run(store, path.parent.name) for path in journals]


def new_run_id(instant: float) -> str:
    """Return the id of a run that starts at that Unix time: UTC to the minute, then two words.

    The words stand for the second and the 64th of a second in alphabetical order, so that ids sort
    by time.
    """
    utc, tick = time.gmtime(instant), int(instant % 1 * len(_NOUNS))
    return f"{time.strftime('%Y%m%d-%H%M', utc)}-{_ADJECTIVES[utc.tm_sec]}-{_NOUNS[tick]}"


def _instant_of(run_id: str) -> float:
    """Return the Unix time that an id was made of; 0 for another name."""
    try:
        day, minute, second, tick = run_id.split("-")
        start = calendar.timegm(time.strptime(day + minute, "%Y%m%d%H%M"))
        return start + _ADJECTIVES.index(second) + _NOUNS.index(tick) / len(_NOUNS)
    except ValueError:
        return 0.0
