"""The state of a run, derived from the events of its journal by pure functions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, get_args

from pipeline.plain_data import read_numbers

Event = dict[str, Any]

RunState = Literal[
    "pending", "running", "finished", "failed", "refused", "interrupted", "cancelled"
]
StageState = Literal[
    "pending", "cached", "waiting", "running", "finished", "failed", "interrupted", "skipped"
]
TERMINAL_STATES = ("finished", "failed", "refused", "interrupted", "cancelled")
"""States of a run that no driver is working on."""
COMPLETED_STATES = ("cached", "finished")
"""States of a stage whose artifact is there."""

_RUN_STATES: dict[str, RunState] = {"resubmitted": "pending", "started": "running"}
_STAGE_STATES: dict[str, StageState] = {state: state for state in get_args(StageState)}
_STAGE_STATES |= {"started": "running", "retry": "waiting"}
_REASON_FIELDS = {"waiting": "reason", "skipped": "reason", "retry": "error", "failed": "error"}


@dataclass(frozen=True)
class StageStatus:
    """The state of one stage of a run."""

    name: str
    uses: str
    state: StageState = "pending"
    reason: str = ""
    kind: str = ""
    fingerprint: str = ""
    path: str = ""
    """The artifact's folder, once there is one."""
    attempts: int = 0
    seconds: float | None = None
    """Duration of all attempts together, up to now if one is running."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    """The newest {done, total, unit, …} of an unfinished stage; not part of the JSON."""
    began: str = ""
    """Start of the running attempt; empty if none is running. Not part of the JSON."""

    def to_json(self) -> dict[str, Any]:
        """Return the stage's entry of `status --json`."""
        return {k: v for k, v in asdict(self).items() if k not in ("progress", "began")}


@dataclass(frozen=True)
class RunStatus:
    """The state of a run."""

    run: str
    pipeline: str = ""
    state: RunState = "pending"
    store: str = ""
    stages: list[StageStatus] = field(default_factory=list)
    registered: list[dict[str, Any]] = field(default_factory=list)
    """{model, version, aliases} of what this run promoted."""
    origin: str = ""
    """The run that this one continues with another configuration; not part of the JSON."""

    def to_json(self) -> dict[str, Any]:
        """Return the output of `status --json`, a stable contract."""
        data = {k: v for k, v in vars(self).items() if k != "origin"}
        return {**data, "stages": [stage.to_json() for stage in self.stages]}


def derive_status(run_id: str, events: list[Event]) -> RunStatus:
    """Derive the state of a run from its journal alone, without the store or processes."""
    status = RunStatus(run_id)
    stages: dict[str, StageStatus] = {}
    for event in events:
        kind = event["event"]
        if kind == "plan":
            stages = _planned_stages(event, stages)
        elif kind.startswith("stage."):
            name = event["stage"]
            stages[name] = _apply_stage_event(stages.get(name, StageStatus(name, "")), event)
        elif kind == "promoted":
            status = replace(status, registered=_add_alias(status.registered, event))
        elif kind.startswith("run."):
            known = {key: event[key] for key in ("pipeline", "store", "origin") if event.get(key)}
            state = _RUN_STATES.get(kind.removeprefix("run."), status.state)
            if kind in ("run.finished", "run.interrupted"):
                state = event.get("state", kind.removeprefix("run."))
            status = replace(status, state=state, **known)
    status = replace(status, stages=list(stages.values()))
    return (
        status if status.state in ("pending", "running") else mark_interrupted(status, status.state)
    )


def mark_interrupted(status: RunStatus, state: RunState = "interrupted") -> RunStatus:
    """Return the status of a run whose driver is gone: no stage is running or waiting."""
    after: dict[str, StageState] = {"running": "interrupted", "waiting": "pending"}
    stages = [replace(stage, state=after.get(stage.state, stage.state)) for stage in status.stages]
    return replace(status, state=state, stages=stages)


def _planned_stages(event: Event, before: Mapping[str, StageStatus]) -> dict[str, StageStatus]:
    """Return the stages of a plan; attempts are counted over all plans of the run."""
    stages = {}
    for planned in event["stages"]:
        name, uses = planned["name"], planned.get("uses", "")
        old = before.get(name, StageStatus(name, uses))
        same = planned.get("fingerprint", "") == old.fingerprint
        kept = old if same and planned.get("verdict") == "cached" else StageStatus(name, uses)
        stages[name] = replace(
            kept,
            state="skipped" if planned.get("verdict") == "skip" else "pending",
            attempts=old.attempts,
            seconds=old.seconds if same else None,
            **{key: planned.get(key, "") for key in ("reason", "kind", "fingerprint")},
        )
    return stages


def _apply_stage_event(stage: StageStatus, event: Event) -> StageStatus:
    kind = event["event"].removeprefix("stage.")
    if kind == "started":
        attempts = max(stage.attempts, int(event.get("attempt", stage.attempts + 1)))
        stage = replace(stage, attempts=attempts, began=event.get("time", ""))
    elif kind in _STAGE_STATES and kind not in ("cached", "skipped"):
        took = event.get("seconds")
        if took is None and stage.began and "time" in event:
            took = parse_timestamp(event["time"]) - parse_timestamp(stage.began)
        stage = replace(_add_seconds(stage, took), began="")
    if kind in _REASON_FIELDS:
        stage = replace(stage, reason=event.get(_REASON_FIELDS[kind], ""))
    elif kind == "interrupted" and event.get("at"):
        stage = replace(stage, reason=f"at {event['at']}")
    elif kind == "finished":
        stage = replace(stage, metrics=read_numbers(event.get("metrics", {})))
    state, fingerprint = _STAGE_STATES.get(kind, stage.state), event.get("fingerprint")
    return replace(stage, state=state, fingerprint=fingerprint or stage.fingerprint)


def _add_alias(registered: list[dict[str, Any]], event: Event) -> list[dict[str, Any]]:
    """Return one entry per model version, with every alias that the run gave it."""
    key = {"model": event["model"], "version": event["version"]}
    old = next((entry for entry in registered if entry.items() >= key.items()), {})
    aliases = sorted({*old.get("aliases", ()), event["alias"]})
    return [*(entry for entry in registered if entry is not old), {**key, "aliases": aliases}]


def _add_seconds(stage: StageStatus, took: float | None) -> StageStatus:
    if took is None:
        return stage
    return replace(stage, seconds=round((stage.seconds or 0.0) + max(0.0, took), 3))


def with_elapsed_time(stage: StageStatus) -> StageStatus:
    """Add the time of an attempt that has no end yet: it runs, or its driver died."""
    if not stage.began:
        return stage
    until = time.time() if stage.state == "running" else last_active_time(stage)
    return _add_seconds(stage, until - parse_timestamp(stage.began))


def last_active_time(stage: StageStatus) -> float:
    """Return the last Unix time at which the newest attempt is known to have been running."""
    return max(parse_timestamp(stage.began), stage.progress.get("time") or 0.0)


def parse_timestamp(stamp: str) -> float:
    """Return a journal's time as Unix time."""
    return datetime.fromisoformat(stamp).timestamp()


def format_timestamp(instant: float) -> str:
    """Return a Unix time as in a journal: UTC in ISO 8601, to the millisecond."""
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(instant))
    return f"{text}.{int(instant % 1 * 1000):03d}Z"
