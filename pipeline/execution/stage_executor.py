"""From a stage that is ready to its artifact: lease, resources, attempts, retries, publication.

One thread of the driver carries each stage through, from top to bottom:

    claim the lease      another run makes it: wait, and take what it made
    take the resources   after the lease, so that nobody holds resources while it waits
    attempt              in a process of its own (`pipeline.execution.attempt`), started by a `Launcher`
    retry or give up     by the class of the failure, each with its own budget
    publish              the lease is checked last; a lost one publishes nothing
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from pipeline.atomic_io import disk_errors
from pipeline.errors import HeadwaterError, LeaseLost
from pipeline.execution.attempt import AttemptStatus, Job, Outcome, classify_error
from pipeline.execution.plan import read_resume_point
from pipeline.stage import Retries, Workers
from pipeline.storage.artifact import Artifact
from pipeline.storage.store import PublishRequest

if TYPE_CHECKING:
    from pipeline.execution.plan import PlannedStage
    from pipeline.execution.run import Run
    from pipeline.spec.pipeline_spec import Node
    from pipeline.storage.lease import Lease

POLL = 0.1  # seconds between two looks of whoever waits
SLOWEST = 60.0  # seconds: the longest pause before a retry

_UNCOUNTED = ("preempted", "crowded")  # ends that a later attempt may not meet: no retry is used
_STOPPED = ("interrupted", "killed", "worker", *_UNCOUNTED)  # how attempts end in a stopping run

StageState = Literal["pending", "cached", "running", "finished", "failed", "interrupted", "skipped"]


@dataclass(frozen=True)
class Resources:
    """CPU cores and GPUs, of a cluster or of a stage."""

    cpus: float
    gpus: float = 0.0

    @classmethod
    def required_by(cls, workers: Workers) -> Resources:
        """What all processes of a stage need together."""
        return cls(workers.num * workers.cpus, workers.num * workers.gpus)

    def fits(self, other: Resources) -> bool:
        """Whether `other` fits in."""
        return other.cpus <= self.cpus + 1e-9 and other.gpus <= self.gpus + 1e-9

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.cpus + other.cpus, self.gpus + other.gpus)

    def __sub__(self, other: Resources) -> Resources:
        return Resources(self.cpus - other.cpus, self.gpus - other.gpus)

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


class Launcher(Protocol):
    """Where attempts run."""

    def start(self) -> Resources:
        """Get ready; what there is."""

    def run(self, job: Job, stop: Callable[[], bool]) -> Outcome:
        """Carry out one attempt; end its process as soon as `stop()` says so."""

    def close(self) -> None:
        """Leave nothing behind."""


class Stopping(Protocol):
    """What a stage's thread must know of the wish to stop."""

    @property
    def requested(self) -> bool:
        """Stop at the next safe point."""

    @property
    def immediate(self) -> bool:
        """Stop without waiting for one."""


class ResourcePool:
    """The resources of the cluster that this run has not given to a stage yet."""

    def __init__(self, total: Resources) -> None:
        self.total = total
        self._free = total
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, need: Resources, give_up: Callable[[], bool]) -> Iterator[bool]:
        """Hold resources inside the block; False if `give_up()` came first."""
        with self._changed:
            while not (lost := give_up()) and not self._free.fits(need):
                self._changed.wait(POLL)
            fits = not lost
            if fits:
                self._free -= need
        try:
            yield fits
        finally:
            if fits:
                with self._changed:
                    self._free += need
                    self._changed.notify_all()


class RetryBudget:
    """How often a stage may still fail, by class of failure."""

    def __init__(self, retries: Retries, backoff: float) -> None:
        self._left = {"worker": retries.worker, "error": retries.error}
        self._backoff = backoff
        self._failures = 0

    def pause(self, status: AttemptStatus) -> float | None:
        """Seconds to wait before the next attempt, growing; None: give up."""
        if status not in _UNCOUNTED:
            if self._left.get(status, 0) <= 0:
                return None
            self._left[status] -= 1
        self._failures += 1
        return float(min(SLOWEST, self._backoff * 2 ** (self._failures - 1)))


@dataclass
class StageExecutor:
    """One stage of a run on its way to an artifact."""

    run: Run
    planned: PlannedStage
    node: Node
    inputs: Mapping[str, tuple[Artifact, ...]]
    launcher: Launcher
    pool: ResourcePool
    stop: Stopping
    backoff: float
    stale: Artifact | None = None
    """What there was before and is to be made again: it does not count as made."""
    _budget: RetryBudget = field(init=False)

    def __post_init__(self) -> None:
        self._budget = RetryBudget(self.node.params.retries, self.backoff)

    def execute(self) -> StageState:
        """Do all of it. Returns the stage's last state; `pending`: an input must be remade."""
        state: StageState | None = None
        while state is None:
            state = self._run_under_lease()
        return state

    def _run_under_lease(self) -> StageState | None:
        """Under one lease; None if the lease was lost and must be claimed again."""
        planned = self.planned
        with self.run.store.lease(planned.uses, planned.fingerprint, self.run.id) as lease:
            if not self._claim(lease):
                return "pending"
            if self._made_by_another():
                self._note("cached", fingerprint=planned.fingerprint)
                return "cached"
            need = Resources.required_by(self.node.params.workers)
            with self.pool.reserve(need, lambda: self.stop.requested) as taken:
                return self._attempts(lease) if taken else "pending"

    def _claim(self, lease: Lease) -> bool:
        """Wait until the stage is ours to make; False if the run is to stop before."""
        if not lease.acquire(0.0):
            owner = (lease.holder() or {}).get("owner", "another run")
            self._note("waiting", reason=f"{owner} is making it")
        while not lease.is_held() and not self.stop.requested:
            lease.acquire(POLL)
        return lease.is_held()

    def _made_by_another(self) -> bool:
        """Whether there is nothing left to make; what is damaged, and ours now, is put aside."""
        found = self.run.store.find_or_quarantine(self.planned.uses, self.planned.fingerprint)
        return found is not None and (self.stale is None or found.path != self.stale.path)

    def _attempts(self, lease: Lease) -> StageState | None:
        while True:
            attempt = self._next_attempt()
            if attempt == 1 and self.planned.forced:
                self._forget()
            self._note("started", attempt=attempt, fingerprint=self.planned.fingerprint)
            outcome = self._attempt(attempt, lease)
            if outcome.status == "done":
                return "finished"
            if outcome.status in _STOPPED and self.stop.requested:
                return self._interrupt(attempt)
            if outcome.status == "corrupt" and not self._inputs_are_there():
                self._note("waiting", reason="a damaged input is to be made again")
                return "pending"
            outcome = _unasked(outcome, lease)
            pause = self._budget.pause(outcome.status)
            if pause is None:
                self._fail(outcome, attempt)
                return "failed"
            self._retry(outcome, attempt, pause)
            if self.stop.requested:
                return self._interrupt(attempt)
            if lease.lost.is_set():
                return None

    def _inputs_are_there(self) -> bool:
        """Whether each input is still the artifact that we were given."""
        given = [artifact for found in self.inputs.values() for artifact in found]
        now = [self.run.store.find(artifact.uses, artifact.fingerprint) for artifact in given]
        return [a.path for a in now if a] == [artifact.path for artifact in given]

    def _attempt(self, attempt: int, lease: Lease) -> Outcome:
        """One attempt and, if it went well, the publication."""
        outcome = self.launcher.run(
            self._job(attempt), lambda: self.stop.immediate or lease.lost.is_set()
        )
        if outcome.status != "done":
            return outcome
        try:
            self._publish(attempt, outcome.seconds, lease)
        except (HeadwaterError, OSError) as error:
            if isinstance(error, LeaseLost):
                lease.lost.set()
            return classify_error(error, self.run.store.root, "`headwater resume` tries again")
        return outcome

    def _publish(self, attempt: int, seconds: float, lease: Lease) -> None:
        planned = self.planned
        request = PublishRequest(
            planned.uses,
            planned.fingerprint,
            kind=planned.kind,
            version=self.node.stage.version,
            payload=planned.payload,
            inputs=self.inputs,
            run={"id": self.run.id, "stage": planned.name, "attempt": attempt},
            seconds=seconds,
            source_hash=planned.source_hash,
        )
        artifact = self.run.store.publish(request, lease)
        self._note(
            "finished",
            attempt=attempt,
            fingerprint=artifact.fingerprint,
            digest=artifact.digest,
            seconds=round(seconds, 3),
            metrics=artifact.metrics,
        )

    def _job(self, attempt: int) -> Job:
        return Job(
            store=self.run.store.root,
            run=self.run.id,
            stage=self.planned.name,
            uses=self.planned.uses,
            fingerprint=self.planned.fingerprint,
            params=self.node.params,
            inputs={name: _folders(found) for name, found in self.inputs.items()},
            attempt=attempt,
            secrets=self.run.secrets(),
            externals=self.planned.payload["externals"],
        )

    def _next_attempt(self) -> int:
        """Attempts are counted over the whole life of the run, restarts of its driver included."""
        attempt = 1
        with disk_errors(self.run.folder):
            while self.run.attempt_dir(self.planned.name, attempt).exists():
                attempt += 1
            self.run.attempt_dir(self.planned.name, attempt).mkdir(parents=True)
        return attempt

    def _forget(self) -> None:
        """Unfinished work of the old artifact is no part of the new one."""
        work = self.run.store.work(self.planned.uses, self.planned.fingerprint)
        shutil.rmtree(work, ignore_errors=True)

    def _retry(self, outcome: Outcome, attempt: int, pause: float) -> None:
        self._note(
            "retry",
            attempt=attempt,
            **{"class": outcome.status, "error": outcome.error, "delay": pause},
        )
        deadline = time.monotonic() + pause
        while time.monotonic() < deadline and not self.stop.requested:
            time.sleep(min(POLL, pause))

    def _fail(self, outcome: Outcome, attempt: int) -> None:
        self._note(
            "failed",
            attempt=attempt,
            **{"class": outcome.status, "error": outcome.error, "remedy": outcome.remedy},
        )

    def _interrupt(self, attempt: int) -> StageState:
        work = self.run.store.work(self.planned.uses, self.planned.fingerprint)
        self._note("interrupted", attempt=attempt, at=read_resume_point(work))
        return "interrupted"

    def _note(self, event: str, **fields: object) -> None:
        self.run.append(f"stage.{event}", stage=self.planned.name, **fields)


def _unasked(outcome: Outcome, lease: Lease) -> Outcome:
    """An end that nobody asked for: the lease went to another run, or a stray signal came."""
    if lease.lost.is_set():
        return Outcome("worker", "another run took it over")
    if outcome.status in ("interrupted", "killed"):
        return Outcome("worker", f"it was stopped from outside: {outcome.error}", outcome.remedy)
    return outcome


def _folders(found: Sequence[Artifact]) -> tuple[Path, ...]:
    return tuple(artifact.path for artifact in found)
