"""A Ray head on this machine: loopback only, token only, and ended by the pids it was started as.

Everything of it lives in two places: `<store>/clusters/<name>/` (token, head.json, head.log) and
a short private folder for Ray's sockets. `ray stop` is never called: it ends every Ray of the
machine. Ray's processes share the session of the one that we start, also after it was killed;
what jobs start is in sessions of its own, and known by a mark in its environment.
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
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launch.cluster.config import Cluster
from launch.cluster.ray_jobs_client import (
    Capacity,
    RayJobsClient,
    Unreachable,
    WrongToken,
    is_loopback,
)
from launch.ray_launcher import PATIENT
from pipeline.atomic_io import make_folder, read_json, write_atomic
from pipeline.errors import Failure, UserError
from pipeline.storage.lease import process_start_time

STARTS = 3  # a slow machine can miss Ray's own 30 s
PATIENCE = 90.0  # seconds for one start
DRAIN = 20.0  # seconds for Ray to end by itself
OBJECTS = 256 * 1024**2  # bytes: data goes through the store, not through Ray
RECORD = "head.json"
LOG = "head.log"
MARK = "HEADWATER_HEAD"


def start(cluster: Cluster) -> bool:
    """Start the head; False if it was up already.

    Raises:
        UserError: the address is not of this machine, or its port is taken.
        Failure: Ray does not start.
    """
    _check_address(cluster)
    make_folder(cluster.state)
    token = _token_file(cluster)
    if answers(cluster):
        return False
    stop(cluster)
    _check_port(cluster)
    for attempt in range(1, STARTS + 1):
        _spawn(cluster, token)
        if _await(cluster):
            return True
        stop(cluster)
        time.sleep(attempt)
    raise Failure(
        f"Ray did not start in {STARTS} attempts: {_last_line(cluster.state / LOG)}",
        where=str(cluster.state / LOG),
        remedy="headwater doctor   (checks the machine; is it overloaded?)",
    )


def stop(cluster: Cluster) -> int:
    """End what `start` began, and only that; how many processes there were."""
    record = _record(cluster)
    if not record:
        return 0
    alive = _processes(record)
    if head := next((p for p in alive if p.pid == record["pid"]), None):
        head.send_signal(signal.SIGTERM)
        _gone(alive, DRAIN)
    for process in (left := _processes(record)):
        with suppress(Exception):
            process.kill()
    _gone(left, DRAIN)
    shutil.rmtree(record["temp"], ignore_errors=True)
    (cluster.state / RECORD).unlink(missing_ok=True)
    return len(alive)


def answers(cluster: Cluster) -> bool:
    """Whether our head is up and takes our token."""
    if not _record(cluster):
        return False
    try:
        cluster.jobs().version()
    except (Unreachable, WrongToken):
        return False
    return True


def pid(cluster: Cluster) -> int | None:
    """The process that was started here, if it lives."""
    record = _record(cluster)
    mine = [p.pid for p in _processes(record) if p.pid == record["pid"]] if record else []
    return mine[0] if mine else None


def _check_address(cluster: Cluster) -> None:
    if not is_loopback(cluster.address):
        raise UserError(
            f"{cluster.address} is not of this machine, and only loopback is opened from here",
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
                f"port {port} is taken by another program",
                where=str(cluster.path),
                remedy="end that program, or write another port into `address`",
            ) from None


def _port(cluster: Cluster) -> int:
    return urlsplit(cluster.address).port or 8265


def _token_file(cluster: Cluster) -> Path:
    """The token's file; made once, readable by nobody else."""
    path = cluster.token_path
    assert path is not None
    make_folder(path.parent)
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    cluster.token()
    return path


def _temp(cluster: Cluster) -> Path:
    """A folder whose path is short: the sockets in it may have 107 bytes."""
    word = hashlib.sha256(str(cluster.state).encode()).hexdigest()[:8]
    root = Path(tempfile.gettempdir())
    root = root if len(str(root)) < 20 else Path("/tmp")  # noqa: S108
    return root / f"hw-{os.getuid()}-{word}"


def _spawn(cluster: Cluster, token: Path) -> None:
    temp = _temp(cluster)
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
        "object-store-memory": OBJECTS,
        "num-cpus": int(offer.cpus or os.cpu_count() or 1),
        "num-gpus": int(offer.gpus),
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    return [*ray, "start", "--head", "--block", "--log-color=false", *words]


def _environment(token: Path, temp: Path) -> dict[str, str]:
    python = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    clean = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    return clean | {
        "PATH": python,  # jobs say `python` and mean this one
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(temp),
        MARK: str(temp),
        "SPT_NOENV": "1",  # else Ray writes the titles of its processes over the mark
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the one way to make every server bind loopback
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        **PATIENT,
        "OMP_NUM_THREADS": "1",
    }


def _await(cluster: Cluster) -> Capacity | None:
    """What the new head has; None if it does not come up."""
    deadline = time.monotonic() + PATIENCE
    jobs: RayJobsClient = cluster.jobs()
    while time.monotonic() < deadline and pid(cluster):
        try:
            if capacity := jobs.capacity():
                return capacity
        except (Failure, WrongToken):
            pass
        time.sleep(0.2)
    return None


def _record(cluster: Cluster) -> dict[str, Any]:
    return read_json(cluster.state / RECORD, {})


def _processes(record: dict[str, Any]) -> list[Any]:
    """Every living process of the head: of its session, or marked with its folder (jobs).

    A session's number is not given to anybody else while one of its processes lives.
    """
    import psutil

    found = []
    mark = f"{MARK}={record['temp']}".encode()
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


def _gone(processes: list[Any], seconds: float) -> None:
    import psutil

    psutil.wait_procs(processes, timeout=seconds)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _last_line(path: Path) -> str:
    with suppress(OSError):
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"
    return "it said nothing"
