"""Executor of one stage of a run: lease, resources, attempts, retries, publication.

One thread of the driver executes each stage, from top to bottom:

    acquire the lease      if another run produces the artifact: wait, and use that one
    reserve resources      after the lease, so that no stage holds resources while it waits
    attempt                in a process of its own (`pipeline.execution.attempt`), by a `Launcher`
    retry or give up       by the class of the failure, each with its own budget
    publish                the lease is checked last; a lost one publishes nothing
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.atomic_io import disk_errors
from pipeline.errors import HeadwaterError, LeaseLost
from pipeline.execution.attempt import AttemptStatus, Job, Outcome, classify_error
from pipeline.execution.cancellation import CancellationToken
from pipeline.execution.plan import PlannedStage, read_resume_point
from pipeline.execution.resources import POLL_INTERVAL, ResourcePool, Resources
from pipeline.execution.run import Run
from pipeline.spec.pipeline_spec import Node
from pipeline.stage import Retries, Stage
from pipeline.status import StageState
from pipeline.storage.artifact import Artifact
from pipeline.storage.lease import Lease
from pipeline.storage.store import PublishRequest

MAX_PAUSE = 60.0  # seconds: the longest pause before a retry

_UNCOUNTED = ("preempted", "unschedulable")  # not a fault of the stage: no retry is used up
_STOPPED = ("interrupted", "killed", "worker", *_UNCOUNTED)  # how attempts end in a stopping run


class Launcher(Protocol):
    """The machines or processes where attempts run."""

    def start(self) -> Sequence[Resources]:
        """Start, and return the resources of each node."""

    def source_hash(self, stage: Stage) -> str:
        """Return the hash of the code of a stage."""

    def code(self, stage: Stage) -> Mapping[str, Any]:
        """Return {commit, dirty, source_hash} of the code of a stage."""

    def run(self, job: Job, stop: Callable[[], bool]) -> Outcome:
        """Run one attempt; kill its process as soon as `stop()` is true."""

    def close(self) -> None:
        """Release everything."""


class RetryBudget:
    """The retries that a stage has left, by class of failure.

    Hand-written because budgets differ per class of failure and waits must end on cancellation.
    """

    def __init__(self, retries: Retries, backoff: float) -> None:
        self._left = {"worker": retries.worker, "error": retries.error}
        self._backoff = backoff
        self._failures = 0

    def pause(self, status: AttemptStatus) -> float | None:
        """Return the seconds to wait before the next attempt, growing; None to give up."""
        if status not in _UNCOUNTED:
            if self._left.get(status, 0) <= 0:
                return None
            self._left[status] -= 1
        self._failures += 1
        return float(min(MAX_PAUSE, self._backoff * 2 ** (self._failures - 1)))


@dataclass
class StageExecutor:
    """Executor of one planned stage."""

    run: Run
    planned: PlannedStage
    node: Node
    inputs: Mapping[str, tuple[Artifact, ...]]
    launcher: Launcher
    pool: ResourcePool
    token: CancellationToken
    backoff: float
    replaced: Artifact | None = None
    """Existing artifact that this execution replaces; it does not count as cached."""
    _budget: RetryBudget = field(init=False)

    def __post_init__(self) -> None:
        self._budget = RetryBudget(self.node.params.retries, self.backoff)

    def execute(self) -> StageState:
        """Execute the stage; return its state, `pending` if an input is to be produced again."""
        state: StageState | None = None
        while state is None:
            state = self._execute_under_lease()
        return state

    def _execute_under_lease(self) -> StageState | None:
        """Return the state of the stage; None if the lease was lost and must be acquired again."""
        planned, store = self.planned, self.run.store
        with store.lease(planned.uses, planned.fingerprint, self.run.id) as lease:
            if not lease.acquire(0.0):
                owner = (lease.holder() or {}).get("owner", "another run")
                self._note("waiting", reason=f"{owner} is producing it")
            while not lease.is_held():
                if self.token.requested:
                    return "pending"
                lease.acquire(POLL_INTERVAL)
            made = store.find_or_quarantine(planned.uses, planned.fingerprint)
            if made and (self.replaced is None or made.path != self.replaced.path):
                self._note("cached", fingerprint=planned.fingerprint)
                return "cached"
            need = Resources.required_by(self.node.params.workers)
            with self.pool.reserve(need, lambda: self.token.requested) as reserved:
                return self._attempts(lease) if reserved else "pending"

    def _attempts(self, lease: Lease) -> StageState | None:
        planned = self.planned
        work = self.run.store.work(planned.uses, planned.fingerprint)
        while True:
            attempt = self._next_attempt()
            if attempt == 1 and planned.rerun:  # the old artifact's work is not part of the new
                shutil.rmtree(work, ignore_errors=True)
            self._note("started", attempt=attempt, fingerprint=planned.fingerprint)
            outcome = self._attempt(attempt, lease)
            status, error, remedy = outcome.status, outcome.error, outcome.remedy
            if status == "done":
                return "finished"
            if status not in _STOPPED or not self.token.requested:
                if status == "corrupt" and not self._inputs_exist():
                    self._note("waiting", reason="a corrupt input must be produced again first")
                    return "pending"
                if lease.lost.is_set():
                    status, error, remedy = "worker", "another run took it over", ""
                elif status in ("interrupted", "killed"):
                    status, error = "worker", f"it was stopped from outside: {error}"
                facts = {"attempt": attempt, "class": status, "error": error}
                pause = self._budget.pause(status)
                if pause is None:
                    self._note("failed", **facts, remedy=remedy)
                    return "failed"
                self._note("retry", **facts, delay=pause)
                deadline = time.monotonic() + pause
                while time.monotonic() < deadline and not self.token.requested:
                    time.sleep(min(POLL_INTERVAL, pause))
            if self.token.requested:
                self._note("interrupted", attempt=attempt, at=read_resume_point(work))
                return "interrupted"
            if lease.lost.is_set():
                return None

    def _inputs_exist(self) -> bool:
        """Return whether each input is still the artifact that the stage was given."""
        given = [artifact for found in self.inputs.values() for artifact in found]
        now = [self.run.store.find(artifact.uses, artifact.fingerprint) for artifact in given]
        return [a.path for a in now if a] == [artifact.path for artifact in given]

    def _attempt(self, attempt: int, lease: Lease) -> Outcome:
        """Run one attempt and, if it succeeds, publish its output."""
        run, planned = self.run, self.planned
        job = Job(
            store=run.store.root,
            run=run.id,
            stage=planned.name,
            uses=planned.uses,
            fingerprint=planned.fingerprint,
            params=self.node.params,
            inputs={edge: tuple(a.path for a in found) for edge, found in self.inputs.items()},
            attempt=attempt,
            secrets=run.secrets(),
            externals=planned.payload["externals"],
        )
        code = self.launcher.code(self.node.stage)  # it may have changed since the plan
        outcome = self.launcher.run(job, lambda: self.token.expired() or lease.lost.is_set())
        if outcome.status != "done":
            return outcome
        request = PublishRequest(
            planned.uses,
            planned.fingerprint,
            kind=planned.kind,
            version=self.node.stage.version,
            payload=planned.payload,
            inputs=self.inputs,
            run={"id": run.id, "stage": planned.name, "attempt": attempt},
            seconds=outcome.seconds,
            code=code,
        )
        try:
            made = run.store.publish(request, lease)
            facts = {"fingerprint": made.fingerprint, "digest": made.digest}
            seconds = round(outcome.seconds, 3)
            self._note("finished", attempt=attempt, **facts, seconds=seconds, metrics=made.metrics)
        except (HeadwaterError, OSError) as error:
            if isinstance(error, LeaseLost):
                lease.lost.set()
            return classify_error(error, run.store.root, "`headwater resume` tries again")
        return outcome

    def _next_attempt(self) -> int:
        """Create the folder of the next attempt; the run counts across restarts of its driver."""
        attempt = 1
        with disk_errors(self.run.folder):
            while self.run.attempt_dir(self.planned.name, attempt).exists():
                attempt += 1
            self.run.attempt_dir(self.planned.name, attempt).mkdir(parents=True)
        return attempt

    def _note(self, event: str, **fields: object) -> None:
        self.run.append(f"stage.{event}", stage=self.planned.name, **fields)
