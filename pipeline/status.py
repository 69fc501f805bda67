"""What a journal says of a run: pure functions from its events to where it stands."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

Event = dict[str, Any]

TERMINAL_STATES = ("finished", "failed", "refused", "interrupted", "cancelled")
"""States of a run that no driver is working on."""


@dataclass(frozen=True)
class StageStatus:
    """Where one stage of a run stands."""

    name: str
    uses: str
    state: str = "pending"
    """pending, cached, waiting, running, finished, failed, interrupted or skipped."""
    reason: str = ""
    kind: str = ""
    fingerprint: str = ""
    path: str = ""
    """The artifact's folder, once there is one."""
    attempts: int = 0
    seconds: float | None = None
    """What the work took, all attempts together; so far, while one is at work."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    """The newest {done, total, unit, …} of a stage that is not finished; not part of the JSON."""
    began: str = ""
    """When the attempt at work did; empty if none is. Not part of the JSON."""

    def to_json(self) -> dict[str, Any]:
        """The stage's entry of `status --json`."""
        return {
            "name": self.name,
            "uses": self.uses,
            "state": self.state,
            "reason": self.reason,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "path": self.path,
            "attempts": self.attempts,
            "seconds": self.seconds,
            "metrics": dict(self.metrics),
        }


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands."""

    run: str
    pipeline: str = ""
    state: str = "pending"
    """pending, running, finished, failed, interrupted, cancelled or refused."""
    store: str = ""
    stages: list[StageStatus] = field(default_factory=list)
    registered: list[dict[str, Any]] = field(default_factory=list)
    """{model, version, aliases} of what this run promoted."""
    origin: str = ""
    """The run that this one goes on from with another configuration; not part of the JSON."""

    def to_json(self) -> dict[str, Any]:
        """What `status --json` prints: a contract."""
        return {
            "run": self.run,
            "pipeline": self.pipeline,
            "state": self.state,
            "store": self.store,
            "stages": [stage.to_json() for stage in self.stages],
            "registered": self.registered,
        }


def derive_status(run_id: str, events: list[Event]) -> RunStatus:
    """What a journal says of a run. Pure: it looks neither at the store nor at processes."""
    status = RunStatus(run_id)
    stages: dict[str, StageStatus] = {}
    for event in events:
        what = event["event"]
        if what == "plan":
            stages = _planned(event, stages)
        elif what.startswith("stage."):
            name = event["stage"]
            stages[name] = _stage_event(stages.get(name, StageStatus(name, "")), event)
        elif what == "promoted":
            status = replace(status, registered=_registered(status.registered, event))
        elif what.startswith("run."):
            status = _run_event(status, event)
    status = replace(status, stages=list(stages.values()))
    return status if status.state in ("pending", "running") else _stopped(status)


def _run_event(status: RunStatus, event: Event) -> RunStatus:
    known = {key: event[key] for key in ("pipeline", "store", "origin") if event.get(key)}
    state = {
        "run.resubmitted": "pending",
        "run.started": "running",
        "run.interrupted": "interrupted",
        "run.finished": event.get("state", "finished"),
    }
    return replace(status, state=state.get(event["event"], status.state), **known)


def _planned(event: Event, before: Mapping[str, StageStatus]) -> dict[str, StageStatus]:
    """The stages of a plan; attempts are counted over all plans of the run."""
    stages = {}
    for planned in event["stages"]:
        name, uses = planned["name"], planned.get("uses", "")
        old = before.get(name, StageStatus(name, uses))
        same = planned.get("fingerprint", "") == old.fingerprint
        kept = old if same and planned.get("verdict") == "cached" else StageStatus(name, uses)
        stages[name] = replace(
            kept,
            state="skipped" if planned.get("verdict") == "skip" else "pending",
            reason=planned.get("reason", ""),
            kind=planned.get("kind", ""),
            fingerprint=planned.get("fingerprint", ""),
            attempts=old.attempts,
            seconds=old.seconds if same else None,
        )
    return stages


def _stage_event(stage: StageStatus, event: Event) -> StageStatus:
    what = event["event"].removeprefix("stage.")
    if fingerprint := event.get("fingerprint"):
        stage = replace(stage, fingerprint=fingerprint)
    match what:
        case "cached":
            return replace(stage, state="cached")
        case "waiting":
            return replace(_ended(stage, event), state="waiting", reason=event.get("reason", ""))
        case "started":
            attempt = int(event.get("attempt", stage.attempts + 1))
            attempts, began = max(stage.attempts, attempt), event.get("time", "")
            return replace(stage, state="running", attempts=attempts, began=began)
        case "retry":
            return replace(_ended(stage, event), state="waiting", reason=event.get("error", ""))
        case "finished":
            metrics = event.get("metrics") or {}
            return replace(_ended(stage, event), state="finished", metrics=metrics)
        case "skipped":
            return replace(stage, state="skipped", reason=event.get("reason", ""))
        case "failed":
            return replace(_ended(stage, event), state="failed", reason=event.get("error", ""))
        case "interrupted":
            reason = f"at {event['at']}" if event.get("at") else stage.reason
            return replace(_ended(stage, event), state="interrupted", reason=reason)
    return stage


def _ended(stage: StageStatus, event: Event) -> StageStatus:
    """The attempt is over: it took what the stage measured, else the time until this event."""
    took = event.get("seconds")
    if took is None and stage.began and "time" in event:
        took = parse_timestamp(event["time"]) - parse_timestamp(stage.began)
    return replace(_spent(stage, took), began="")


def _spent(stage: StageStatus, took: float | None) -> StageStatus:
    if took is None:
        return stage
    return replace(stage, seconds=round((stage.seconds or 0.0) + max(0.0, took), 3))


def with_elapsed_time(stage: StageStatus) -> StageStatus:
    """With the time of the attempt at work, or of one that its driver's death left without end."""
    if not stage.began:
        return stage
    until = time.time() if stage.state == "running" else last_active_time(stage)
    return _spent(stage, until - parse_timestamp(stage.began))


def last_active_time(stage: StageStatus) -> float:
    """When the attempt that began last is known to have been at work, as Unix time."""
    return max(parse_timestamp(stage.began), float(stage.progress.get("time", 0.0)))


def parse_timestamp(stamp: str) -> float:
    """A journal's time as Unix time."""
    return datetime.fromisoformat(stamp).timestamp()


def format_timestamp(instant: float) -> str:
    """Unix time as a journal says it: UTC in ISO 8601, to the millisecond."""
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(instant))
    return f"{text}.{int(instant % 1 * 1000):03d}Z"


def _registered(before: list[dict[str, Any]], event: Event) -> list[dict[str, Any]]:
    """One entry a model version, with every alias that the run gave it."""
    key = {"model": event["model"], "version": event["version"]}
    old = [entry for entry in before if entry.items() >= key.items()]
    aliases = [*old[0]["aliases"], event["alias"]] if old else [event["alias"]]
    rest = [entry for entry in before if entry not in old]
    return [*rest, {**key, "aliases": sorted(set(aliases))}]


def _stopped(status: RunStatus) -> RunStatus:
    """No stage is at work in a run that is over."""
    after = {"running": "interrupted", "waiting": "pending"}
    stages = [replace(stage, state=after.get(stage.state, stage.state)) for stage in status.stages]
    return replace(status, stages=stages)


def mark_interrupted(status: RunStatus) -> RunStatus:
    """The driver is gone without a word."""
    return _stopped(replace(status, state="interrupted"))
