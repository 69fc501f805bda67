"""One attempt of a stage, executed in a process of its own.

The driver sends a `Job`. The process opens the inputs (their bytes are hashed), calls the stage's
function, compares the sources with the plan before and after it, and returns an `Outcome`: plain
data with an error message and a status, which decides whether the attempt is repeated.

    done           the driver publishes what is under out/
    user           the input is wrong: never repeated, exit code 2
    error          the stage's own code raised an error: repeated `retries.error` times
    worker         a process died, stalled or ran out of memory: repeated `retries.worker` times
    preempted      the machine was taken away: repeated forever
    unschedulable  the cluster is fully used: repeated forever
    corrupt        an input's bytes changed: the input is produced again first
    interrupted    it stopped on request
    killed         the driver killed it
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline import errors
from pipeline.atomic_io import DISK_FULL, disk_full_error
from pipeline.context import Context
from pipeline.errors import HeadwaterError
from pipeline.execution.orphans import kill_orphaned_predecessor
from pipeline.redaction import redact
from pipeline.stage import Inputs, Params
from pipeline.stage_registry import find_stage
from pipeline.storage.artifact import Artifact
from pipeline.storage.store import Store

FailureClass = Literal["user", "error", "worker", "preempted", "unschedulable", "corrupt"]
AttemptStatus = FailureClass | Literal["done", "interrupted", "killed"]

_STATUS_BY_ERROR: dict[type[HeadwaterError], AttemptStatus] = {
    errors.UserError: "user",
    errors.Interrupted: "interrupted",
    errors.CorruptArtifact: "corrupt",
    errors.ResourcesUnavailable: "unschedulable",
    errors.WorkerDied: "worker",
    errors.StageStalled: "worker",
    errors.LeaseLost: "worker",
}
# Ray's exceptions by name, because the engine does not import Ray.
_NODE_LOST = {"NodeDiedError", "LocalRayletDiedError"}
_OUT_OF_MEMORY = {"OutOfMemoryError", "ObjectStoreFullError", "MemoryError"}
_WORKER_LOST = {
    *("WorkerCrashedError", "RayActorError", "ObjectLostError", "TaskCancelledError"),
    *("RaySystemError", "RpcError", "TaskPlacementGroupRemoved", "ActorPlacementGroupRemoved"),
}


@dataclass(frozen=True)
class Job:
    """The input of a stage's process. The parameters hold names of secrets, not values."""

    store: Path
    run: str
    stage: str
    uses: str
    fingerprint: str
    params: Params
    inputs: Mapping[str, tuple[Path, ...]]
    """The folders of the artifacts on each edge."""
    attempt: int
    secrets: frozenset[str] = frozenset()
    externals: Mapping[str, str] = field(default_factory=dict)
    """As planned; see `Context`."""

    @property
    def attempt_dir(self) -> Path:
        """The folder of the logs."""
        return self.store / "runs" / self.run / "stages" / self.stage / f"attempt-{self.attempt}"


@dataclass(frozen=True)
class Outcome:
    """The result of an attempt."""

    status: AttemptStatus
    error: str = ""
    remedy: str = ""
    seconds: float = 0.0
    """Time in the stage's function."""


def run_attempt(job: Job) -> Outcome:
    """Run the attempt in this process. Raises nothing: every error is an outcome."""
    start, context = time.monotonic(), None
    try:
        context = Context(
            work=Store(job.store).work(job.uses, job.fingerprint),
            attempt_dir=job.attempt_dir,
            cancel_file=job.store / "runs" / job.run / "cancel",
            cache=job.store / "cache",
            run_id=job.run,
            stage=job.stage,
            attempt=job.attempt,
            secrets=job.secrets,
            externals=job.externals,
        )
        kill_orphaned_predecessor(context.work)
        stage, store = find_stage(job.uses), Store(job.store)
        inputs: dict[str, Artifact | tuple[Artifact, ...]] = {}
        for name, folders in job.inputs.items():
            found = tuple(store.ensure_verified(Artifact.open(f), job.run) for f in folders)
            inputs[name] = found if stage.inputs[name].many else found[0]
        context.check_cancelled()
        _check_externals(job, context.work)
        start = time.monotonic()
        stage.run(job.params, Inputs(inputs), context.out, context)
        _check_externals(job, context.work)
        if not any(path.is_file() for path in context.out.rglob("*")):
            message, remedy = "the stage returned without output", "write its files under `out`"
            raise errors.Failure(message, where=context.stage, remedy=remedy)
    except BaseException as error:  # a stage that calls sys.exit() must not end silently
        text = str(error)  # of a HeadwaterError; others are logged with their traceback
        if not isinstance(error, HeadwaterError):
            text = "".join(traceback.format_exception(error))
        log = context.log if context else print  # captured by the launcher
        with suppress(OSError):
            for line in redact(text, job.secrets).splitlines():
                log(line)
        remedy = f"`headwater logs {job.run} {job.stage}` shows more"
        end = classify_error(error, job.store, remedy)
        # The driver may not know the values of the secrets.
        return Outcome(end.status, redact(end.error, job.secrets), redact(end.remedy, job.secrets))
    return Outcome("done", seconds=time.monotonic() - start)


def _check_externals(job: Job, work: Path) -> None:
    """Check that the sources are those of the plan; work that may hold others is quarantined.

    Raises:
        InputError: a source was edited since, or cannot be read.
    """
    if changed := job.params.changed_externals(job.externals):
        why = f"{', '.join(changed)} changed since the run was planned"
        Store(job.store).quarantine(work, why)
        remedy = f"`headwater resume {job.run}` plans again, with the present content"
        raise errors.InputError(why, where=job.stage, remedy=remedy)


def classify_error(error: BaseException, place: Path, remedy: str = "") -> Outcome:
    """Return the outcome that an error stands for.

    Args:
        place: a folder on the disk that was written to, to name it when it is full.
        remedy: the remedy if the error has none.
    """
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause  # Ray wraps the error of a task
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        error = disk_full_error(Path(error.filename or place))
    if isinstance(error, HeadwaterError):
        matches = (s for kind, s in _STATUS_BY_ERROR.items() if isinstance(error, kind))
        return Outcome(next(matches, "error"), str(error), error.remedy or remedy)
    name = type(error).__name__
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & _NODE_LOST or getattr(error, "preempted", False):
        return Outcome("preempted", "the machine it ran on was lost", remedy)
    if names & _OUT_OF_MEMORY:
        remedy = "lower the stage's batch or workers, or use a machine with more memory"
        return Outcome("worker", "out of memory", remedy)
    if names & _WORKER_LOST:
        return Outcome("worker", f"a process died ({name})", remedy)
    if isinstance(error, KeyboardInterrupt):
        return Outcome("interrupted", "stopped on request")
    frames = traceback.extract_tb(error.__traceback__)
    line = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: " if frames else ""
    message = str(error).strip().partition("\n")[0]
    return Outcome("error", line + (f"{name}: {message}" if message else name), remedy)
