"""Everything of the engine that touches Ray: a cluster to join or to start, and attempts on it.

An embedded cluster lives and dies with the driver: the kernel kills Ray's servers when the
driver's main thread ends, whatever ended it, and a reaper ends all the rest.
"""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from launch.process_reaper import Reaper
from pipeline.atomic_io import make_folder
from pipeline.errors import Failure
from pipeline.execution.attempt import Job, Outcome, classify_error, run_attempt
from pipeline.execution.output_capture import DRIVER_VARIABLE, capture_output
from pipeline.execution.stage_executor import POLL, Resources
from pipeline.storage.lease import process_start_time

STARTS = 4  # a slow machine can miss Ray's own 30 s, which cannot be changed
NODE_CHECK = 2.0  # seconds between two looks at whether our node is alive
_LET_GO = 10.0  # seconds for a killed task to be reported as such
PATIENT = {
    # A machine that stood still for a while (paused, or out of breath) has lost no node: a raylet
    # that does not answer is given time; one that is dead refuses the call and is noticed at once.
    "RAY_health_check_timeout_ms": "60000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
}
_OBJECTS = 512 * 1024**2  # bytes of shared memory: data goes through the store, not through Ray


def run_captured_attempt(job: Job, folder: Path) -> Outcome:
    """What the stage's process does: all that it prints lands in the attempt's log.

    Args:
        folder: where the driver works, which relative paths are relative to; a machine that has
            no such folder stays where Ray put the process.
    """
    if folder.is_dir():
        os.chdir(folder)
    # Ctrl-C in a terminal reaches every process of its group; the stage stops by the cancel file.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    make_folder(job.attempt_dir)
    with capture_output(job.attempt_dir / "log.txt", job.secrets):
        return run_attempt(job)


class RayLauncher:
    """Attempts as Ray tasks, each in a process of its own.

    The task itself asks for no CPU: the processes that a stage starts ask for theirs, and the
    runner admits a stage only when those fit.
    """

    def __init__(self, address: str | None = None, resources: Resources | None = None) -> None:
        self._address = address
        self._resources = resources
        self._close: Callable[[], None] = lambda: None
        self._alive = _our_node_is_alive
        self._task: Any = None

    def start(self) -> Resources:
        """Join the cluster at the address, or this process's own, or start one.

        Raises:
            Failure: the cluster cannot be reached or does not start.
        """
        if self._address is None:
            os.environ.update(_environment())  # before Ray is imported, which reads some of it
        import ray

        if not ray.is_initialized():
            if self._address:
                join(self._address)
                self._close = leave
            else:
                embedded = EmbeddedRay(self._resources)
                self._close, self._alive = embedded.close, embedded.alive
        self._task = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(run_captured_attempt)
        total = ray.cluster_resources()
        return Resources(total.get("CPU", 0.0), total.get("GPU", 0.0))

    def run(self, job: Job, stop: Callable[[], bool]) -> Outcome:
        """Carry out one attempt; its process is killed as soon as `stop()` says so.

        Raises:
            Failure: Ray itself is gone.
        """
        import ray

        task = self._task.options(name=f"{job.stage}-{job.attempt}").remote(job, Path.cwd())
        look = time.monotonic() + NODE_CHECK
        while not ray.wait([task], timeout=POLL)[0]:
            if stop():
                ray.cancel(task, force=True, recursive=True)
                ray.wait([task], timeout=_LET_GO)
                return Outcome("killed", "it was killed")
            if time.monotonic() > look:
                self._require_ray()
                look = time.monotonic() + NODE_CHECK
        try:
            return ray.get(task)  # type: ignore[no-any-return]
        except Exception as error:
            more = f"`headwater logs {job.run} {job.stage}` shows its last words"
            return classify_error(error, job.store, more)

    def close(self) -> None:
        """End what `start` began; a cluster that was there before stays."""
        self._close()
        self._close = lambda: None

    def _require_ray(self) -> None:
        """Tasks of a driver whose own node is dead never end, nor do they fail."""
        if not self._alive():
            raise Failure(
                "Ray died under the run",
                remedy="`headwater resume` goes on; `headwater doctor` checks the machine",
            )


class EmbeddedRay:
    """A Ray of this process alone, without a dashboard, on loopback, with a token.

    Args:
        resources: what it may hand out; without it the whole machine.

    Raises:
        Failure: it did not start in several attempts.
    """

    def __init__(self, resources: Resources | None = None) -> None:
        for attempt in range(1, STARTS + 1):
            try:
                self._start(resources)
                return
            except BaseException as error:
                self.close()
                if not isinstance(error, Exception):  # Ctrl-C
                    raise
                if attempt == STARTS:
                    raise Failure(
                        f"Ray did not start in {STARTS} attempts: {error}",
                        remedy="`headwater doctor` checks the machine; is it overloaded?",
                    ) from error
                time.sleep(attempt)

    def alive(self) -> bool:
        """Whether its servers run."""
        return all(process_start_time(pid) == born for pid, born in self._servers)

    def close(self) -> None:
        """End all its processes, also those that it forgot, and remove its files."""
        with suppress(Exception):
            leave()
        self._reaper.close()

    def _start(self, resources: Resources | None) -> None:
        folder = _short_folder()
        self._reaper = Reaper(folder.name, folder)
        os.environ.update(_environment())
        os.environ[DRIVER_VARIABLE] = folder.name
        import ray

        limits = (
            {"num_cpus": int(resources.cpus), "num_gpus": int(resources.gpus)} if resources else {}
        )
        try:
            with _keeping_signal_handlers():
                ray.init(
                    address="local",  # a bare init joins whatever cluster a stale file names
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    object_store_memory=_OBJECTS,
                    _temp_dir=str(folder),
                    **limits,
                )
        finally:
            del os.environ[DRIVER_VARIABLE]  # what else this process starts is not Ray's
        children = psutil.Process().children()
        servers = [p.pid for p in children if p.name() in ("raylet", "gcs_server")]
        self._servers = [(pid, process_start_time(pid)) for pid in servers]
        _silence()


def _our_node_is_alive() -> bool:
    """What the cluster says of the machine that this driver is connected to."""
    import ray

    with suppress(Exception):  # a cluster that does not answer
        ours = ray.get_runtime_context().get_node_id()
        return any(node["Alive"] for node in ray.nodes() if node["NodeID"] == ours)
    return False


def join(address: str) -> None:
    """Connect to a running cluster.

    Raises:
        Failure: it does not answer, or refuses.
    """
    import ray

    try:
        with _keeping_signal_handlers():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise Failure(
            f"the Ray cluster does not answer: {error}",
            where=address,
            remedy="check the address and the token with `headwater cluster status`",
        ) from error
    _silence()


def leave() -> None:
    """Disconnect; an embedded Ray ends."""
    import ray

    with _keeping_signal_handlers():
        ray.shutdown()


def _silence() -> None:
    """Ray would print every death of a worker to stdout, between lines of JSON."""
    import ray

    ray._private.worker._worker_logs_enabled = False


def _short_folder() -> Path:
    """A private folder: Ray makes sockets in it, whose paths have at most 107 bytes."""
    root = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="headwater-", dir=root if len(root) < 20 else "/tmp"))  # noqa: S108


def _environment() -> dict[str, str]:
    """Settings that must be in place before Ray starts; what the user set stays."""
    wanted = {
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else Ray wants to write one under $HOME
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        **PATIENT,
        "OMP_NUM_THREADS": "1",
        "SPT_NOENV": "1",  # else a process's title is written over its mark in /proc
    }
    if "RAY_AUTH_TOKEN_PATH" in os.environ:  # the token of the cluster that this process is part of
        del wanted["RAY_AUTH_TOKEN"]
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
