"""A run's folder and its append-only journal: the one truth about what happened.

    <store>/runs/<run-id>/run.yaml        the resolved pipeline
    <store>/runs/<run-id>/plan.json       the newest plan
    <store>/runs/<run-id>/journal.jsonl   {"seq", "time", "event", …}, one line an event
    <store>/runs/<run-id>/cancel          asks the run to stop
    <store>/runs/<run-id>/stages/<name>/attempt-K/

Status is derived from the journal whenever somebody asks and is stored nowhere. A journal has
one writer at a time, the driver, which holds the run's lease; a driver that is gone without a
word leaves a run that shows as interrupted.
"""

from __future__ import annotations

import difflib
import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.atomic_io import (
    append_line,
    disk_errors,
    fsync_path,
    make_folder,
    read_json,
    read_lines,
    write_atomic,
)
from pipeline.errors import Failure, NotFound, UserError
from pipeline.naming import check_name
from pipeline.redaction import redact, secret_names
from pipeline.status import (
    Event,
    RunStatus,
    StageStatus,
    derive_status,
    format_timestamp,
    last_active_time,
    mark_interrupted,
    with_elapsed_time,
)
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from pipeline.execution.plan import Plan
    from pipeline.spec.pipeline_spec import Spec
    from pipeline.storage.lease import Lease

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
    """A run's folder; opening it reads nothing."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store = store
        self.id = check_name(run_id, "a run")
        self._lock = threading.Lock()
        self._tail = (-1, -1)  # the journal's size in bytes after our last append, and its seq
        self._lease: Lease | None = None
        self._secrets: frozenset[str] | None = None

    def __repr__(self) -> str:
        return f"Run({self.id!r})"

    @classmethod
    def create(cls, store: Store, spec: Spec, plan: Plan, origin: str | None = None) -> Run:
        """Make a new run's folder, pending.

        Args:
            origin: the run that this one goes on from with a changed configuration.
        """
        run = cls._draw(store)
        resolved = yaml.safe_dump(_plain(spec.resolved), sort_keys=False, allow_unicode=True)
        write_atomic(run.folder / "run.yaml", resolved)
        facts = {"pipeline": spec.name, "store": str(store.root), "root": str(Path.cwd())}
        run.append("run.created", **facts, origin=origin)
        run.write_plan(plan)
        return run

    @classmethod
    def find(cls, store: Store, name: str = "latest") -> Run:
        """The run of that id, the one whose id begins or ends like that, or the `latest`.

        Raises:
            NotFound: there is none, or there are several.
        """
        ids = [run.id for run in list_runs(store)]
        if not ids:
            raise NotFound(
                "the store holds no runs",
                where=str(store.root),
                remedy="start one with `headwater run CONFIG`, or name a store with --store",
            )
        if name in ids or name == "latest":
            return cls(store, ids[-1] if name == "latest" else name)
        matches = [known for known in ids if known.startswith(name) or known.endswith(f"-{name}")]
        if len(matches) == 1:
            return cls(store, matches[0])
        if matches:
            raise NotFound(f"several runs match {name!r}: {', '.join(matches[-5:])}")
        near = difflib.get_close_matches(name, ids, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]}?" if near else "`headwater list` shows all runs"
        raise NotFound(f"no run {name!r}", where=str(store.root), remedy=remedy)

    @classmethod
    def _draw(cls, store: Store) -> Run:
        """A run with a new id of this instant; its folder is made, which claims the id."""
        make_folder(store.root / "runs")
        instant = time.time()
        while True:
            run = cls(store, new_run_id(instant))
            try:
                with disk_errors(run.folder):
                    run.folder.mkdir()
                    fsync_path(run.folder.parent)
            except FileExistsError:
                instant += 1 / len(_NOUNS)
            else:
                return run

    @property
    def folder(self) -> Path:
        """Where everything about the run lies."""
        return self.store.root / "runs" / self.id

    @property
    def cancel_file(self) -> Path:
        """Its existence asks the run to stop at the next safe point."""
        return self.folder / "cancel"

    @property
    def journal(self) -> Path:
        """The event log."""
        return self.folder / "journal.jsonl"

    def attempt_dir(self, stage: str, attempt: int) -> Path:
        """Logs and stack dumps of one attempt."""
        return self.folder / "stages" / check_name(stage, "a stage") / f"attempt-{attempt}"

    def resolved(self) -> dict[str, Any]:
        """The pipeline as it was resolved: what run.yaml holds."""
        return dict(yaml.safe_load((self.folder / "run.yaml").read_text()))

    def spec(self) -> Spec:
        """The run's pipeline, checked again."""
        from pipeline.spec.pipeline_spec import spec_from_resolved

        return spec_from_resolved(self.resolved())

    def plan(self) -> Plan:
        """The newest plan.

        Raises:
            Failure: there is none: whoever created the run was stopped before it was complete.
        """
        from pipeline.execution.plan import Plan

        if plan := self._plan():
            return Plan.from_json(plan)
        raise Failure(
            f"run {self.id} has no plan",
            where=str(self.folder),
            remedy="it was stopped while it was created: start it again",
        )

    def payload(self, stage: str) -> dict[str, Any]:
        """What identifies a stage's work by the newest plan; empty if it knows no such stage."""
        stages = self._plan().get("stages", ())
        return next((dict(s.get("payload") or {}) for s in stages if s["name"] == stage), {})

    def _plan(self) -> dict[str, Any]:
        return read_json(self.folder / "plan.json", {})

    def write_plan(self, plan: Plan) -> None:
        """Replace the plan: a resumed run finds other things cached than it did at first."""
        described = plan.to_json()
        write_atomic(self.folder / "plan.json", json.dumps(described, indent=1) + "\n")
        keys = ("name", "uses", "kind", "verdict", "reason", "fingerprint")
        stages = [{key: stage.get(key, "") for key in keys} for stage in described["stages"]]
        self.append("plan", stages=stages)

    # --- driving -------------------------------------------------------------------------------

    def open(self, **facts: Any) -> None:
        """Become the run's driver: take its lease and journal `run.started`.

        If another machine's driver seems to be gone, its lease is watched until it expires.

        Raises:
            UserError: another driver is at work on this run.
        """
        lease = self.store.lease("run", self.id, owner=self.id)
        patience = lease.expiry + 2 * lease.heartbeat
        if not lease.acquire() and (lease.alive() or not lease.acquire(patience)):
            holder = lease.holder() or {}
            raise UserError(
                f"run {self.id} is at work already: process {holder.get('pid', '?')} "
                f"on {holder.get('host', 'another machine')}",
                remedy=f"`headwater status {self.id} --watch` shows it",
            )
        if derive_status(self.id, self.events()).state != "pending":
            self.cancel_file.unlink(missing_ok=True)  # from before anybody asked for it anew
        self._lease = lease
        self._close_attempts()
        self.append("run.started", pid=os.getpid(), host=os.uname().nodename, **facts)

    def _close_attempts(self) -> None:
        """Journal the end of what a driver that died had at work: when it was seen last."""
        for stage in mark_interrupted(derive_status(self.id, self.events())).stages:
            if stage.began:
                seen = format_timestamp(last_active_time(self._fill(stage)))
                self.append(
                    "stage.interrupted", stage=stage.name, attempt=stage.attempts, time=seen
                )

    def close(self) -> None:
        """Stop being the driver; journal `run.finished` or `run.interrupted` before."""
        if self._lease:
            self._lease.release()
        self._lease = None

    def append(self, event: str, **fields: Any) -> Event:
        """Write one event durably; returns it with its `seq` and `time`.

        Values of secrets that the pipeline names are written as their names.

        Raises:
            LeaseLost: this was the driver, and another one took over.
            Failure: the disk is full.
        """
        line: Event = {}

        def render() -> str:
            raw = {
                "seq": self._seq() + 1,
                "time": format_timestamp(time.time()),
                "event": event,
                **fields,
            }
            line.update(_redacted(_plain(raw), self.secrets()))
            return json.dumps(line, ensure_ascii=False)

        with self._lock:
            if self._lease:
                self._lease.check()
            self._tail = (append_line(self.journal, render), line["seq"])
        return line

    def secrets(self) -> frozenset[str]:
        """The names of the secrets that the pipeline uses."""
        if self._secrets is None:
            try:
                text = (self.folder / "run.yaml").read_text()
            except FileNotFoundError:
                return frozenset()
            self._secrets = secret_names(text)
        return self._secrets

    def _seq(self) -> int:
        """The number of the last event; reads the journal only if another wrote to it."""
        size, seq = self._tail
        if self.journal.stat().st_size == size:
            return seq
        return max((event["seq"] for event in self.events()), default=0)

    # --- reading -------------------------------------------------------------------------------

    def events(self) -> list[Event]:
        """Everything that happened, in order; a torn or damaged line is left out."""
        return [event for line in read_lines(self.journal) if (event := _event(line))]

    def has_driver(self) -> bool:
        """Whether a driver is at work on it, as far as can be seen from here."""
        return self.store.lease("run", self.id, owner="reader").alive()

    def status(self) -> RunStatus:
        """Where the run stands, derived from its journal and the store."""
        status = derive_status(self.id, self.events())
        if status.state == "running" and not self.has_driver():
            status = mark_interrupted(status)
        stages = [self._fill(stage) for stage in status.stages]
        return replace(status, stages=stages, store=status.store or str(self.store.root))

    def _fill(self, stage: StageStatus) -> StageStatus:
        """Add what the store knows: the artifact's folder and figures, or live progress."""
        if not stage.fingerprint:
            return stage
        if stage.state in ("cached", "finished"):
            artifact = self.store.latest_readable(stage.uses, stage.fingerprint)
            if artifact is None:
                return stage
            return replace(
                stage,
                path=str(artifact.path),
                metrics=stage.metrics or artifact.metrics,
                seconds=artifact.manifest["seconds"] if stage.seconds is None else stage.seconds,
            )
        work = self.store.work(stage.uses, stage.fingerprint)
        return with_elapsed_time(
            replace(stage, progress=read_json(work / "observed" / "progress.json", {}))
        )


def list_runs(store: Store) -> list[Run]:
    """All runs of a store, the oldest first."""
    return [
        Run(store, path.parent.name) for path in sorted(store.root.glob("runs/*/journal.jsonl"))
    ]


def new_run_id(instant: float) -> str:
    """The id of a run that starts at that Unix time: UTC to the minute, then two words.

    The words stand for the second and the 64th of a second, in alphabetical order, so that
    ids sort by time.
    """
    utc = time.gmtime(instant)
    tick = int(instant % 1 * len(_NOUNS))
    return f"{time.strftime('%Y%m%d-%H%M', utc)}-{_ADJECTIVES[utc.tm_sec]}-{_NOUNS[tick]}"


def _event(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(event, dict) and isinstance(event.get("seq"), int) and "event" in event
    return event if whole else None


def _plain(value: Any) -> Any:
    """Mappings and sequences of any type as JSON's own, so that they can be written."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else repr(value)
    return str(value)


def _redacted(value: Any, secrets: frozenset[str]) -> Any:
    if isinstance(value, str):
        return redact(value, secrets)
    if isinstance(value, Mapping):
        return {key: _redacted(item, secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item, secrets) for item in value]
    return value
