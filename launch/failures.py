"""Failures of a run since its driver last started: what failed, its remedy, the command to type.

`run`, `status`, `list` and the report show the same of a run; all of it is read from its journal.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import HeadwaterError
from pipeline.promotion_gates import Gate
from pipeline.spec.pipeline_spec import DEFAULT_ALIAS, Promotion, StageRef, parse_ref
from pipeline.status import COMPLETED_STATES

if TYPE_CHECKING:
    from pipeline.execution.run import Run
    from pipeline.status import Event, RunStatus

PROMOTION = "promotion"
FAILURE_EVENTS = ("stage.failed", "run.finished", "gate.refused")
FAILED_STATES = ("failed", "refused")
"""States of a run that cannot continue as it is."""


@dataclass(frozen=True)
class RunFailure:
    """One failure of a run."""

    subject: str
    """Name of the stage; `promotion`; empty for the run itself."""
    error: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.error}" if self.subject else self.error


@dataclass(frozen=True)
class NextCommand:
    """The command to type next, without the option that names the store."""

    words: str
    why: str


def run_failures(run: Run, status: RunStatus) -> list[RunFailure]:
    """Return the failures since the driver last started; none for a run that did not fail."""
    if status.state not in FAILED_STATES:
        return []
    return [
        RunFailure(_subject(event, status), event["error"], event.get("remedy") or "")
        for event in _events_of_last_start(run)
        if event["event"] in FAILURE_EVENTS and event.get("error")
    ]


def next_command(run: Run, status: RunStatus) -> NextCommand | None:
    """Return the command that continues a run which did not finish; None for other runs."""
    resume = NextCommand(f"headwater resume {run.id}", "continues where it stopped")
    if status.state in ("interrupted", "cancelled"):
        return resume
    if status.state not in FAILED_STATES:
        return None
    if promotion_failed(status) and _is_user_error(run):
        return NextCommand(promote_command(run, status), "with gates that the model meets")
    if _is_user_error(run):
        why = "after the remedy; STAGE.KEY=VALUE changes a key"
        return NextCommand(resume.words, why)
    if failed := [stage.name for stage in status.stages if stage.state == "failed"]:
        return NextCommand(f"headwater logs {run.id} {failed[0]}", f"then {resume.words}")
    return resume


def promote_command(run: Run, status: RunStatus) -> str:
    """Return the command that promotes a finished run, with the gates of its pipeline file:
    those on a metric that it lacks name the nearest one, or are left out."""
    rule, gates = promotion_rule(run), []
    known = [f"{stage.name}.{metric}" for stage in status.stages for metric in stage.metrics]
    for text in rule.require if rule else ():
        metric = Gate.parse(text).metric
        if near := difflib.get_close_matches(metric, known, n=1):
            gates.append(text.replace(metric, near[0], 1))
    options = "".join(f" --require {shlex.quote(gate)}" for gate in gates)
    return f"headwater promote {run.id}{options}"


def promotion_failed(status: RunStatus) -> bool:
    """Return whether a run failed although all its stages are there."""
    complete = (*COMPLETED_STATES, "skipped")
    return status.state in FAILED_STATES and all(s.state in complete for s in status.stages)


def promotion_rule(run: Run) -> Promotion | None:
    """Return the promotion of the run's pipeline file; None without a readable one.

    The rest of the file is not checked: an artifact can be promoted although its stage is not
    installed any more.
    """
    try:
        rule = run.resolved().get("promote")
    except (HeadwaterError, OSError):
        return None
    if not isinstance(rule, dict) or not {"model", "stage"} <= set(rule):
        return None
    ref, require = parse_ref(rule["stage"]), rule.get("require") or ()
    stage = ref.name if isinstance(ref, StageRef) else str(rule["stage"])
    alias = str(rule.get("alias", DEFAULT_ALIAS))
    return Promotion(str(rule["model"]), stage, alias, tuple(map(str, require)))


def _is_user_error(run: Run) -> bool:
    """Return whether every failure is of the input: a gate, a name, a key or a source."""
    kinds = {
        "user" if event["event"] == "gate.refused" else event.get("class")
        for event in _events_of_last_start(run)
        if event["event"] in FAILURE_EVENTS and event.get("error")
    }
    return kinds == {"user"}


def _events_of_last_start(run: Run) -> Iterator[Event]:
    events = run.events()
    starts = [i for i, event in enumerate(events) if event["event"] == "run.started"]
    yield from events[starts[-1] :] if starts else events


def _subject(event: Event, status: RunStatus) -> str:
    if "stage" in event:
        return str(event["stage"])
    return PROMOTION if promotion_failed(status) else ""
