"""A Ray head on this machine, on loopback only and with a token.

Its files are in `<store>/clusters/<name>/` (token, head.json, head.log) and in a private folder
with a short path for Ray's sockets. The head is stopped by process id and never by `ray stop`,
which ends every Ray of the machine. Ray's processes share the session of the process that is
started here, also after it was killed; processes of jobs have sessions of their own and are
identified by an environment variable.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launch.cluster.config import Cluster
from launch.cluster.ray_jobs_client import (
    RayJobsClient,
    Unreachable,
    WrongToken,
    is_loopback,
)
from launch.ray_compat import LOOPBACK_ENV, PROCESS_ENV, start_command, temporary_root
from pipeline.atomic_io import make_folder, read_json, write_atomic
from pipeline.errors import Failure, UserError
from pipeline.storage.lease import process_start_time

START_ATTEMPTS = 3  # a slow machine can exceed Ray's own limit of 30 s
START_TIMEOUT = 90.0  # seconds per attempt
STOP_TIMEOUT = 20.0  # seconds until Ray has ended after SIGTERM
OBJECT_STORE_BYTES = 256 * 1024**2  # data goes through the artifact store, not through Ray
RECORD = "head.json"
LOG = "head.log"
JOB_ENV_VARIABLE = "HEADWATER_HEAD"


def start(cluster: Cluster) -> bool:
    """Start the head; return False if it was already up.

    Raises:
        UserError: the address is not on this machine, or its port is in use.
        Failure: Ray does not start.
    """
    _check_address(cluster)
    make_folder(cluster.state)
    token = _token_file(cluster)
    if is_up(cluster):
        return False
    stop(cluster)
    _check_port(cluster)
    for attempt in range(1, START_ATTEMPTS + 1):
        _start_process(cluster, token)
        if _wait_until_up(cluster):
            return True
        stop(cluster)
        time.sleep(attempt)
    raise Failure(
        f"Ray did not start in {START_ATTEMPTS} attempts: {_last_line(cluster.state / LOG)}",
        where=str(cluster.state / LOG),
        remedy="headwater doctor   (checks the machine; it may be overloaded)",
    )


def stop(cluster: Cluster) -> int:
    """Stop the head that `start` started and return the number of its processes."""
    record = _record(cluster)
    if not record:
        return 0
    alive = _processes(record)
    if head := next((p for p in alive if p.pid == record["pid"]), None):
        head.send_signal(signal.SIGTERM)
        _wait_until_gone(alive, STOP_TIMEOUT)
    for process in (left := _processes(record)):
        with suppress(Exception):
            process.kill()
    _wait_until_gone(left, STOP_TIMEOUT)
    shutil.rmtree(record["temp"], ignore_errors=True)
    (cluster.state / RECORD).unlink(missing_ok=True)
    return len(alive)


def is_up(cluster: Cluster) -> bool:
    """Return whether the head is up and accepts the token."""
    if not _record(cluster):
        return False
    try:
        cluster.jobs().version()
    except (Unreachable, WrongToken):
        return False
    return True


def pid(cluster: Cluster) -> int | None:
    """Return the process id of the head; None if it is not running."""
    record = _record(cluster)
    found = [p.pid for p in _processes(record) if p.pid == record["pid"]] if record else []
    return found[0] if found else None


def _check_address(cluster: Cluster) -> None:
    if not is_loopback(cluster.address):
        raise UserError(
            f"{cluster.address} is not a loopback address; heads are started on loopback only",
            where=str(cluster.path),
            remedy="headwater cluster status " + cluster.name,
        )
    if cluster.token_path is None:
        raise UserError(
            "a local head needs a token", where=str(cluster.path), remedy="set token_path"
        )


def _check_port(cluster: Cluster) -> None:
    port = _port(cluster)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise UserError(
                f"port {port} is used by another program",
                where=str(cluster.path),
                remedy="stop that program, or change the port in `address`",
            ) from None


def _port(cluster: Cluster) -> int:
    return urlsplit(cluster.address).port or 8265


def _token_file(cluster: Cluster) -> Path:
    """Return the token file; create it with mode 600 if it does not exist."""
    path = cluster.token_path
    assert path is not None
    make_folder(path.parent)
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    cluster.token()
    return path


def _short_folder(cluster: Cluster) -> Path:
    """Return a private folder whose path is short enough for Ray's sockets (107 bytes)."""
    word = hashlib.sha256(str(cluster.state).encode()).hexdigest()[:8]
    return temporary_root() / f"hw-{os.getuid()}-{word}"


def _start_process(cluster: Cluster, token: Path) -> None:
    temp = _short_folder(cluster)
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(mode=0o700)
    with (cluster.state / LOG).open("wb") as log:
        process = subprocess.Popen(
            _command(cluster, temp),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=cluster.state,
            env=_environment(token, temp),
            start_new_session=True,
        )
    record = {"pid": process.pid, "born": process_start_time(process.pid), "temp": str(temp)}
    write_atomic(cluster.state / RECORD, json.dumps(record) + "\n")


def _command(cluster: Cluster, temp: Path) -> list[str]:
    offer = cluster.file.resources
    options = {
        "node-ip-address": "127.0.0.1",
        "port": 0,
        "include-dashboard": "true",
        "dashboard-host": "127.0.0.1",
        "dashboard-port": _port(cluster),
        "dashboard-agent-listen-port": 0,
        "dashboard-agent-grpc-port": 0,
        "ray-client-server-port": _free_port(),
        "min-worker-port": 0,
        "max-worker-port": 0,
        "temp-dir": temp,
        "object-store-memory": OBJECT_STORE_BYTES,
        "num-cpus": int(offer.cpus or os.cpu_count() or 1),
        "num-gpus": int(offer.gpus),
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    return start_command("--head", "--block", "--log-color=false", *words)


def _environment(token: Path, temp: Path) -> dict[str, str]:
    python = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    clean = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    return clean | {
        "PATH": python,  # so that `python` in a job is this interpreter
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(temp),
        JOB_ENV_VARIABLE: str(temp),
        **LOOPBACK_ENV,
        **PROCESS_ENV,
    }


def _wait_until_up(cluster: Cluster) -> bool:
    """Wait for the new head; return whether it comes up and knows its resources."""
    deadline = time.monotonic() + START_TIMEOUT
    jobs: RayJobsClient = cluster.jobs()
    while time.monotonic() < deadline and pid(cluster):
        try:
            if jobs.capacity():
                return True
        except (Failure, WrongToken):
            pass
        time.sleep(0.2)
    return False


def _record(cluster: Cluster) -> dict[str, Any]:
    return read_json(cluster.state / RECORD, {})


def _processes(record: dict[str, Any]) -> list[Any]:
    """Return the running processes of the head: of its session, or with its folder in their
    environment (jobs).

    The kernel does not reuse a session id while one of its processes runs.
    """
    import psutil

    found = []
    mark = f"{JOB_ENV_VARIABLE}={record['temp']}".encode()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            born = process_start_time(process.pid)
            head = born != "" and (process.pid, born) == (record["pid"], record["born"])
            child = int(born or 0) > int(record["born"] or 0) and (
                os.getsid(process.pid) == record["pid"]
                or mark in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            )
            if head or child:
                found.append(process)
    return found


def _wait_until_gone(processes: list[Any], seconds: float) -> None:
    import psutil

    psutil.wait_procs(processes, timeout=seconds)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _last_line(path: Path) -> str:
    with suppress(OSError):
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "no output"
    return "no output"
