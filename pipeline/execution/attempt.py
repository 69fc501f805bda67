"""One attempt of a stage, as its own process carries it out.

The driver sends a `Job`; the process opens the inputs (their bytes hashed), calls the stage's
function and sends back an `Outcome`: plain data that says how it ended, in words for people and
in a class that decides whether it is tried again.

    done         the driver publishes what lies under out/
    user         the input is wrong: never tried again, exit code 2
    error        the stage's own code raised: `retries.error` times
    worker       a process died, got stuck or ran out of memory: `retries.worker` times
    preempted    the machine was taken away: tried again for ever
    crowded      others use the cluster: tried again for ever
    corrupt      an input's bytes changed: it is made again first
    interrupted  it stopped on request
    killed       the driver ended it
"""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.atomic_io import DISK_FULL, disk_full_error, read_json, write_atomic
from pipeline.context import Context
from pipeline.errors import (
    CorruptArtifact,
    Failure,
    HeadwaterError,
    Interrupted,
    LeaseLost,
    ResourcesUnavailable,
    StageStalled,
    UserError,
    WorkerDied,
)
from pipeline.stage import Inputs, Params
from pipeline.stage_registry import find_stage
from pipeline.storage.artifact import Artifact
from pipeline.storage.lease import machine_id, process_start_time
from pipeline.storage.store import Store

AttemptStatus = Literal[
    "done", "user", "error", "worker", "preempted", "crowded", "corrupt", "interrupted", "killed"
]

# Ray's exceptions by name, so that nothing here imports Ray.
_NODE_LOST = {"NodeDiedError", "LocalRayletDiedError"}
_OUT_OF_MEMORY = {"OutOfMemoryError", "ObjectStoreFullError"}
_WORKER_LOST = {
    "WorkerCrashedError",
    "RayActorError",
    "ObjectLostError",
    "TaskCancelledError",
    "RaySystemError",
    "RpcError",
    "TaskPlacementGroupRemoved",
    "ActorPlacementGroupRemoved",
}
_KILL_TIMEOUT = 10.0  # seconds that a killed process is given to vanish


@dataclass(frozen=True)
class Job:
    """All that a stage's process must know. The parameters hold names of secrets, no values."""

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
        """Where the logs go."""
        return self.store / "runs" / self.run / "stages" / self.stage / f"attempt-{self.attempt}"


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    status: AttemptStatus
    error: str = ""
    remedy: str = ""
    seconds: float = 0.0
    """Time in the stage's function, of this attempt."""


def run_attempt(job: Job) -> Outcome:
    """Run the attempt in this process. Raises nothing: every end is an outcome."""
    begun = time.monotonic()
    try:
        context = _context(job)
        _alone(context.work)
        inputs = _open_inputs(job)
        context.check_cancelled()
        begun = time.monotonic()
        find_stage(job.uses).run(job.params, inputs, context.out, context)
        _require_output(context)
    except BaseException as error:  # a stage that calls sys.exit() must not end in silence
        _log(job, error)
        return classify_error(
            error, job.store, f"`headwater logs {job.run} {job.stage}` shows more"
        )
    return Outcome("done", seconds=time.monotonic() - begun)


def classify_error(error: BaseException, place: Path, more: str = "") -> Outcome:
    """Class an error, and say it to people.

    Args:
        place: a folder on the disk that was written to, to name it when it is full.
        more: the remedy, where the error brings none.
    """
    error = _unwrap(error)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        error = disk_full_error(Path(error.filename or place))
    if isinstance(error, HeadwaterError):
        return Outcome(_class_of(error), str(error), error.remedy or more)
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & _NODE_LOST or getattr(error, "preempted", False):
        return Outcome("preempted", "the machine it ran on was lost", more)
    if names & _OUT_OF_MEMORY or isinstance(error, MemoryError):
        remedy = "lower the stage's batch or workers, or use a machine with more memory"
        return Outcome("worker", "out of memory", remedy)
    if names & _WORKER_LOST:
        return Outcome("worker", f"a process died ({type(error).__name__})", more)
    if isinstance(error, KeyboardInterrupt):
        return Outcome("interrupted", "stopped on request")
    return Outcome("error", f"{_place_of(error)}{_first_line(error)}", more)


def _class_of(error: HeadwaterError) -> AttemptStatus:
    classes: dict[type[HeadwaterError], AttemptStatus] = {
        UserError: "user",
        Interrupted: "interrupted",
        CorruptArtifact: "corrupt",
        ResourcesUnavailable: "crowded",
        WorkerDied: "worker",
        StageStalled: "worker",
        LeaseLost: "worker",
    }
    return next((end for kind, end in classes.items() if isinstance(error, kind)), "error")


def _unwrap(error: BaseException) -> BaseException:
    """What a task raised, out of Ray's wrapping; what the wrapping says if that is all."""
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    return error


def _first_line(error: BaseException) -> str:
    said = str(error).strip()
    name = type(error).__name__
    return f"{name}: {said.splitlines()[0]}" if said else name


def _place_of(error: BaseException) -> str:
    """`file.py:line: ` of the line that raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: " if frames else ""


def _log(job: Job, error: BaseException) -> None:
    """The attempt's log ends with the reason: a traceback, unless the error speaks for itself."""
    known = isinstance(error, HeadwaterError)
    text = str(error) if known else "".join(traceback.format_exception(error))
    with suppress(OSError, HeadwaterError):
        context = _context(job)
        for line in text.splitlines():
            context.log(line)


def _context(job: Job) -> Context:
    return Context(
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


def _open_inputs(job: Job) -> Inputs:
    """The artifacts, every byte of them checked on this machine.

    Raises:
        CorruptArtifact: one differs from what was published; it was put aside.
    """
    store = Store(job.store)
    declared = find_stage(job.uses).inputs
    opened: dict[str, Artifact | tuple[Artifact, ...]] = {}
    for name, folders in job.inputs.items():
        found = tuple(store.ensure_verified(Artifact.open(folder), job.run) for folder in folders)
        opened[name] = found if declared[name].many else found[0]
    return Inputs(opened)


def _require_output(context: Context) -> None:
    if not any(path.is_file() for path in context.out.rglob("*")):
        raise Failure(
            "the stage returned without writing anything",
            where=context.stage,
            remedy="its function writes its files under `out`",
        )


# --- one process a stage -----------------------------------------------------------------------


def _alone(work: Path) -> None:
    """End the process of an attempt before this one, if its driver died and it lives on.

    The lease says that the stage is ours, so whoever still writes here is an orphan.
    """
    mark = work / "process.json"
    for pid, born in _orphans(mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + _KILL_TIMEOUT
        lives = True
        while lives:
            time.sleep(0.01)
            lives = process_start_time(pid) == born and time.monotonic() < deadline
    me = {"node": machine_id(), "pid": os.getpid(), "born": process_start_time(os.getpid())}
    write_atomic(mark, json.dumps(me), durable=False)


def _orphans(mark: Path) -> Iterator[tuple[int, str]]:
    """The marked process, if it is on this machine, alive and not this one."""
    before: dict[str, Any] = read_json(mark, {})
    with suppress(ValueError, KeyError):
        pid, born = int(before["pid"]), str(before["born"])
        here = before["node"] == machine_id() != "" and pid != os.getpid()
        if here and born and process_start_time(pid) == born:
            yield pid, born
