"""Everything of the engine that touches Ray: a cluster to join or to start, and attempts on it.

An embedded cluster lives and dies with the driver: its processes are killed by the kernel when
the driver's main thread ends, whatever ended it, and Ray's workers follow theirs.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from pipeline.artifact import make_folder
from pipeline.attempt import Job, Outcome, carry_out, explain
from pipeline.capture import captured
from pipeline.errors import Failure
from pipeline.production import POLL, Resources

STARTS = 3  # a slow machine can miss Ray's own 30 s, which cannot be changed
_PREFIX = "headwater-"
_LET_GO = 10.0  # seconds for a killed task to be reported as such
_OBJECTS = 512 * 1024**2  # bytes of shared memory: data goes through the store, not through Ray


def run_attempt(job: Job) -> Outcome:
    """What the stage's process does: all that it prints lands in the attempt's log."""
    make_folder(job.attempt_dir)
    with captured(job.attempt_dir / "log.txt", job.secrets):
        return carry_out(job)


class RayLauncher:
    """Attempts as Ray tasks, each in a process of its own.

    The task itself asks for no CPU: the processes that a stage starts ask for theirs, and the
    runner admits a stage only when those fit.
    """

    def __init__(self, address: str | None = None, resources: Resources | None = None) -> None:
        self._address = address
        self._resources = resources
        self._ours = False
        self._folder: Path | None = None
        self._task: Any = None

    def start(self) -> Resources:
        """Join the cluster at the address, or this process's own, or start one.

        Raises:
            Failure: the cluster cannot be reached or does not start.
        """
        os.environ.update(_environment())
        import ray

        if not ray.is_initialized():
            self._ours = True
            with _keeping_signal_handlers():
                self._join() if self._address else self._embed()
            # Every death of a worker would be printed to stdout, between lines of JSON.
            ray._private.worker._worker_logs_enabled = False
        self._task = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(run_attempt)
        total = ray.cluster_resources()
        return Resources(total.get("CPU", 0.0), total.get("GPU", 0.0))

    def run(self, job: Job, stop: Callable[[], bool]) -> Outcome:
        """Carry out one attempt; its process is killed as soon as `stop()` says so."""
        import ray

        task = self._task.options(name=f"{job.stage}-{job.attempt}").remote(job)
        while not ray.wait([task], timeout=POLL)[0]:
            if stop():
                ray.cancel(task, force=True, recursive=True)
                ray.wait([task], timeout=_LET_GO)
                return Outcome("killed", "it was killed")
        try:
            return ray.get(task)  # type: ignore[no-any-return]
        except Exception as error:
            more = f"`headwater logs {job.run} {job.stage}` shows its last words"
            return explain(error, job.store, more)

    def close(self) -> None:
        """End what `start` began; a cluster that was there before stays."""
        if self._ours:
            import ray

            with _keeping_signal_handlers(), suppress(Exception):
                ray.shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._ours, self._folder = False, None

    def _join(self) -> None:
        import ray

        try:
            ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise Failure(
                f"the Ray cluster does not answer: {error}",
                where=str(self._address),
                remedy="check the address and the token with `headwater cluster status`",
            ) from error

    def _embed(self) -> None:
        for attempt in range(1, STARTS + 1):
            self._folder = fresh_folder()
            try:
                start_embedded(self._folder, self._resources)
                return
            except Exception as error:
                self.close()
                self._ours = True
                if attempt == STARTS:
                    raise Failure(
                        f"Ray did not start in {STARTS} attempts: {error}",
                        remedy="`headwater doctor` checks the machine; is it overloaded?",
                    ) from error
                time.sleep(attempt)


def start_embedded(folder: Path, resources: Resources | None = None) -> None:
    """Start a Ray of this process alone.

    Args:
        folder: an own, short folder: Ray makes sockets in it, whose paths have at most 107 bytes.
        resources: what it may hand out; without it the whole machine.
    """
    os.environ.update(_environment())
    import ray

    limits = {"num_cpus": resources.cpus, "num_gpus": resources.gpus} if resources else {}
    ray.init(
        address="local",  # a bare init joins whatever cluster a stale file names
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=_OBJECTS,
        _temp_dir=str(folder),
        **limits,
    )


def fresh_folder() -> Path:
    """A private, short folder for one embedded Ray; those of dead processes are removed."""
    root = Path(tempfile.gettempdir())
    for old in root.glob(f"{_PREFIX}*"):
        owner = old.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=root))


def _environment() -> dict[str, str]:
    """Settings that must be in place before Ray starts; what the user set stays."""
    wanted = {
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else Ray wants to write one under $HOME
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "OMP_NUM_THREADS": "1",
    }
    return {name: value for name, value in wanted.items() if name not in os.environ}


@contextmanager
def _keeping_signal_handlers() -> Iterator[None]:
    """Ray puts a handler of its own on SIGTERM, which would end the driver on the spot."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
