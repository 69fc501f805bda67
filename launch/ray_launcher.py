"""Ray as the launcher of stage attempts: the cluster to join or to start, and tasks on it.

An embedded cluster ends with its driver: the kernel kills Ray's servers when the driver's main
thread ends, for whatever reason, and a reaper kills all other processes.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from launch.process_reaper import Reaper
from launch.ray_compat import (
    bind_to_loopback,
    embedded_env,
    preserve_signal_handlers,
    silence_worker_messages,
    temporary_root,
)
from launch.source_code import code_version, source_hash
from pipeline.atomic_io import make_folder
from pipeline.errors import Failure
from pipeline.execution.attempt import Job, Outcome, classify_error, run_attempt
from pipeline.execution.resources import POLL_INTERVAL, Resources
from pipeline.stage import Stage
from pipeline.storage.lease import process_start_time
from stages.distributed.output_capture import DRIVER_VARIABLE, capture_output

START_ATTEMPTS = 4  # a slow machine can exceed Ray's own limit of 30 s, which cannot be changed
NODE_CHECK_INTERVAL = 2.0  # seconds between two checks that the driver's node is alive
KILL_TIMEOUT = 10.0  # seconds until Ray reports a killed task
OBJECT_STORE_BYTES = 512 * 1024**2  # data goes through the artifact store, not through Ray


def run_captured_attempt(job: Job, folder: Path) -> Outcome:
    """Run an attempt in the stage's process, with its output captured in the attempt's log.

    Args:
        folder: the driver's working directory. On a machine without that directory the process
            stays in the one that Ray assigned.
    """
    if folder.is_dir():
        os.chdir(folder)
    # Ctrl-C in a terminal reaches the whole process group; stages stop through the cancel file.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    make_folder(job.attempt_dir)
    with capture_output(job.attempt_dir / "log.txt", job.secrets):
        return run_attempt(job)


class RayLauncher:
    """Launcher that executes each attempt as a Ray task, in a process of its own.

    The task requests no CPU: the processes that a stage starts request theirs, and the runner
    starts a stage only when those fit.

    Args:
        address: cluster to join. Default: this process's own, or a new embedded one.
        resources: CPUs and GPUs of an embedded cluster. Default: the whole machine.
    """

    def __init__(self, address: str | None = None, resources: Resources | None = None) -> None:
        self._address = address
        self._resources = resources
        self._close: Callable[[], None] = lambda: None
        self._alive = _is_own_node_alive
        self._task: Any = None

    def start(self) -> list[Resources]:
        """Join or start the cluster and return the resources of each node.

        Raises:
            Failure: the cluster cannot be reached or does not start.
        """
        if self._address is None:
            os.environ.update(embedded_env())  # Ray reads some of it when it is imported
        import ray

        if not ray.is_initialized():
            if self._address:
                connect_to_cluster(self._address)
                self._close = disconnect
            else:
                embedded = EmbeddedRay(self._resources)
                self._close, self._alive = embedded.close, embedded.alive
        self._task = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(run_captured_attempt)
        totals = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return [Resources(total.get("CPU", 0.0), total.get("GPU", 0.0)) for total in totals]

    def source_hash(self, stage: Stage) -> str:
        """Return the hash of the code of a stage."""
        return source_hash(stage)

    def code(self, stage: Stage) -> dict[str, Any]:
        """Return {commit, dirty, source_hash} of the code of a stage."""
        return {**code_version(stage), "source_hash": source_hash(stage)}

    def run(self, job: Job, stop: Callable[[], bool]) -> Outcome:
        """Run one attempt and return its outcome; kill its process once `stop()` returns True.

        Raises:
            Failure: Ray itself died.
        """
        import ray

        task = self._task.options(name=f"{job.stage}-{job.attempt}").remote(job, Path.cwd())
        next_check = time.monotonic() + NODE_CHECK_INTERVAL
        while not ray.wait([task], timeout=POLL_INTERVAL)[0]:
            if stop():
                ray.cancel(task, force=True, recursive=True)
                ray.wait([task], timeout=KILL_TIMEOUT)
                return Outcome("killed", "it was killed")
            if time.monotonic() > next_check:
                if not self._alive():  # tasks of a driver whose own node is dead never end
                    raise Failure(
                        "Ray died during the run",
                        remedy="`headwater resume` continues it; `headwater doctor` checks the "
                        "machine",
                    )
                next_check = time.monotonic() + NODE_CHECK_INTERVAL
        try:
            return ray.get(task)  # type: ignore[no-any-return]
        except Exception as error:
            more = f"`headwater logs {job.run} {job.stage}` shows its last output"
            return classify_error(error, job.store, more)

    def close(self) -> None:
        """Leave the cluster; end it if `start` started it."""
        self._close()
        self._close = lambda: None


class EmbeddedRay:
    """Ray cluster of this process, on loopback, with a token and without a dashboard.

    Args:
        resources: CPUs and GPUs. Default: the whole machine.

    Raises:
        Failure: it did not start in several attempts.
    """

    def __init__(self, resources: Resources | None = None) -> None:
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                self._start(resources)
                return
            except BaseException as error:
                self.close()
                if not isinstance(error, Exception):  # Ctrl-C
                    raise
                if attempt == START_ATTEMPTS:
                    raise Failure(
                        f"Ray did not start in {START_ATTEMPTS} attempts: {error}",
                        remedy="`headwater doctor` checks the machine; it may be overloaded",
                    ) from error
                time.sleep(attempt)

    def alive(self) -> bool:
        """Return whether its servers run."""
        return all(process_start_time(pid) == born for pid, born in self._servers)

    def close(self) -> None:
        """End all its processes and remove its files."""
        with suppress(Exception):
            disconnect()
        self._reaper.close()

    def _start(self, resources: Resources | None) -> None:
        folder = Path(tempfile.mkdtemp(prefix="headwater-", dir=temporary_root()))
        self._reaper = Reaper(folder.name, folder)
        os.environ.update(embedded_env())
        os.environ[DRIVER_VARIABLE] = folder.name
        import ray

        bind_to_loopback()
        limits = (
            {"num_cpus": int(resources.cpus), "num_gpus": int(resources.gpus)} if resources else {}
        )
        try:
            with preserve_signal_handlers():
                ray.init(
                    address="local",  # else Ray joins the cluster that a stale file names
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=str(folder),
                    **limits,
                )
        finally:
            del os.environ[DRIVER_VARIABLE]  # other processes that this one starts are not Ray's
        children = psutil.Process().children()
        servers = [p.pid for p in children if p.name() in ("raylet", "gcs_server")]
        self._servers = [(pid, process_start_time(pid)) for pid in servers]
        silence_worker_messages()


def _is_own_node_alive() -> bool:
    """Return whether the cluster lists the node of this driver as alive."""
    import ray

    with suppress(Exception):  # the cluster does not answer
        own = ray.get_runtime_context().get_node_id()
        return any(node["Alive"] for node in ray.nodes() if node["NodeID"] == own)
    return False


def connect_to_cluster(address: str) -> None:
    """Connect to a running cluster.

    Raises:
        Failure: it does not answer or refuses the connection.
    """
    import ray

    try:
        with preserve_signal_handlers():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise Failure(
            f"the Ray cluster does not answer: {error}",
            where=address,
            remedy="check the address and the token with `headwater cluster status`",
        ) from error
    silence_worker_messages()


def disconnect() -> None:
    """Disconnect from the cluster; an embedded one ends."""
    import ray

    with preserve_signal_handlers():
        ray.shutdown()
