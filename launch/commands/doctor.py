"""`doctor`: checks of the environment and of its security.

Each check is one function that returns or yields findings. A finding of level `fail` leads to exit
code 1, one of level `warn` does not.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import click

from launch.ui import console, formatting
from launch.ui.options import json_option, open_store, store_option
from pipeline.errors import HeadwaterError

GIB = 1024**3
PROGRAMS = {
    "Ray": re.compile(r"\bray::|/ray/|\b(raylet|gcs_server)\b"),
    "MLflow": re.compile(r"\bmlflow\b"),
    "Headwater": re.compile(r"\bheadwater\b|\blaunch\.cli\b|\bstages\.training\b"),
}
"""Programs whose sockets are checked, by their command lines."""
SERVICES = {
    "/api/version": ("Ray", re.compile(rb"ray_version")),
    "/version": ("MLflow", re.compile(rb"\A\s*\d+\.\d+")),
    "/metrics": ("metrics of Ray", re.compile(rb"^# HELP (ray|autoscaler)_", re.M)),
}
"""Paths, and what answers there without a token: service and content."""
SERVERS = ("Ray", "MLflow")  # services that must not be open; metrics of a cluster have no token
MIN_DISK = 10 * GIB
MIN_SHARED_MEMORY = 1 * GIB
STALE_LOCK_AGE = 600.0  # seconds; no compilation takes longer
MIN_VERSIONS = {"torch": "2.13", "deepspeed": "0.19", "ray": "2.54", "mlflow": "3.7"}
"""Older versions of Ray and MLflow have known vulnerabilities."""

Level = Literal["ok", "warn", "fail"]
LEVELS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    check: str
    level: Level
    found: str
    remedy: str = ""


@click.command()
@store_option
@json_option
def doctor(store_path: str, as_json: bool) -> None:
    """Check the environment and its security. Exit code 1 if a check fails."""
    findings = list(run_checks(store_path))
    if as_json:
        console.print_json([asdict(finding) for finding in findings])
    else:
        _print_findings(findings)
    if any(finding.level == "fail" for finding in findings):
        sys.exit(1)


def run_checks(store_path: str) -> Iterator[Finding]:
    """Yield the findings of all checks, in the order in which a run would meet the problems."""
    yield _python()
    for name, least in MIN_VERSIONS.items():
        yield _package(name, least)
    yield _compiler()
    store = open_store(store_path).root
    listeners = list_listeners()
    checks: list[Callable[[], Iterator[Finding]]] = [
        lambda: iter([_disk(store)]),
        lambda: iter([_writable("store", store)]),
        lambda: iter([_writable("home", Path.home())]),
        lambda: iter([_socket_paths()]),
        _shared_memory,
        lambda: iter([_compile_locks()]),
        lambda: iter([_authentication(listeners)]),
        lambda: iter([_open_servers(listeners)]),
        lambda: _clusters(store_path),
        lambda: iter([_mlflow()]),
    ]
    for check in checks:
        yield from check()


def _print_findings(findings: list[Finding]) -> None:
    table = console.make_table("", "check", "found", flexible=["found"])
    for finding in findings:
        mark, style = LEVELS[finding.level]
        found = console.plain_text(finding.found)
        if finding.remedy:
            found.append("\n").append_text(console.plain_text((finding.remedy, "cyan")))
        table.add_row(console.plain_text((mark, style)), finding.check, found)
    console.print_table(table)
    failed = sum(finding.level == "fail" for finding in findings)
    warned = sum(finding.level == "warn" for finding in findings)
    if failed:
        console.echo(f"{failed} checks failed, {warned} warnings", "red")
    else:
        console.echo(
            f"all checks passed, {warned} warnings" if warned else "all checks passed", "green"
        )


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores"
    fits = sys.version_info[:2] == (3, 11)
    remedy = "" if fits else "make install with Python 3.11"
    return Finding("python", "ok" if fits else "fail", found, remedy)


def _package(name: str, least: str) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(name, "fail", "not installed", "make install")
    if _parts(found) < _parts(least):
        return Finding(name, "fail", f"{found}, older than {least}", "make install")
    return Finding(name, "ok", found)


def _parts(text: str) -> tuple[int, ...]:
    digits = ("".join(c for c in part if c.isdigit()) for part in text.split("+")[0].split(".")[:2])
    return tuple(int(part or 0) for part in digits)


def _compiler() -> Finding:
    found = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if found:
        return Finding("compiler", "ok", found)
    remedy = "install g++ if a stage uses DeepSpeed's compiled operators"
    return Finding("compiler", "warn", "no C++ compiler", remedy)


def _disk(root: Path) -> Finding:
    place = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(place).free
    remedy = "" if free >= MIN_DISK else "headwater gc lists what can be deleted"
    level: Level = "ok" if free >= MIN_DISK else "warn"
    return Finding("disk", level, f"{formatting.size(free)} free at {place}", remedy)


def _writable(what: str, folder: Path) -> Finding:
    place = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            return Finding(what, "ok", f"{folder} is writable")
    except OSError as error:
        found = f"{folder}: {(error.strerror or str(error)).lower()}"
    remedy = "set HOME to a writable folder" if what == "home" else "choose another with --store"
    return Finding(what, "fail" if what == "store" else "warn", found, remedy)


def _socket_paths() -> Finding:
    """Check that the paths of Ray's sockets, deep in the temporary folder, are not too long."""
    from launch.ray_compat import LONGEST_SOCKET, MAX_SOCKET_PATH

    root = tempfile.gettempdir()
    if len(root) + len(LONGEST_SOCKET) <= MAX_SOCKET_PATH:
        return Finding("temporary", "ok", root)
    found = f"{root} is too long for Ray's sockets"
    return Finding("temporary", "fail", found, "export TMPDIR=/tmp")


def _shared_memory() -> Iterator[Finding]:
    if not Path("/dev/shm").is_dir():  # noqa: S108
        return
    free = shutil.disk_usage("/dev/shm").free  # noqa: S108
    level: Level = "ok" if free >= MIN_SHARED_MEMORY else "warn"
    remedy = "" if free >= MIN_SHARED_MEMORY else "start the container with --shm-size=2gb"
    yield Finding("shared memory", level, f"{formatting.size(free)} free", remedy)


def _compile_locks() -> Finding:
    """Find lock files of killed compilations, on which every later run would wait forever."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions"))
    stale = []
    with suppress(OSError):
        stale = [
            lock
            for lock in root.rglob("lock")
            if time.time() - lock.stat().st_mtime > STALE_LOCK_AGE and lock.is_file()
        ]
    if not stale:
        return Finding("compile locks", "ok", "no stale locks")
    names = " ".join(str(lock) for lock in stale)
    return Finding(
        "compile locks", "fail", f"{len(stale)} left by killed compilations", f"rm {names}"
    )


def _authentication(listeners: list[Listener]) -> Finding:
    """Check that Ray tokens are enabled, at least where Ray listens beyond loopback."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode.lower() != "disabled":
        found = f"RAY_AUTH_MODE is {mode or 'unset (a local Ray has a token)'}"
        return Finding("Ray tokens", "ok", found)
    rays = [listener for listener in listeners if listener.program == "Ray"]
    found = "RAY_AUTH_MODE=disabled" + (f", and Ray listens on {rays[0]}" if rays else "")
    remedy = "unset RAY_AUTH_MODE, or set it to token"
    return Finding("Ray tokens", "fail" if rays else "warn", found, remedy)


def _open_servers(listeners: list[Listener]) -> Finding:
    """Find the servers that other machines can reach, above all those that need no token."""
    services = {listener: _service(listener) for listener in listeners}
    if open_ := [f"{listener} ({what})" for listener, what in services.items() if what in SERVERS]:
        remedy = "bind 127.0.0.1, and enable tokens: RAY_AUTH_MODE=token"
        return Finding("open servers", "fail", f"without a token: {', '.join(open_)}", remedy)
    programs = {listener: services[listener] or listener.program for listener in listeners}
    if found := [f"{listener} ({what})" for listener, what in programs.items() if what]:
        remedy = "bind 127.0.0.1 (a cluster of several nodes: a private network or a firewall)"
        return Finding("open servers", "warn", f"beyond loopback: {', '.join(found)}", remedy)
    nothing = "no server of Ray, MLflow or Headwater listens beyond loopback"
    return Finding("open servers", "ok", nothing)


@dataclass(frozen=True)
class Listener:
    """TCP socket that listens beyond loopback."""

    ip: str
    port: int
    program: str
    """Ray, MLflow or Headwater; empty for others and for processes of other users."""

    def __str__(self) -> str:
        return f"{self.ip}:{self.port}"


def list_listeners() -> list[Listener]:
    """Return the sockets of this machine that listen beyond loopback, whatever opened them."""
    import psutil

    found = {
        Listener(link.laddr.ip, link.laddr.port, _program(link.pid))
        for link in psutil.net_connections(kind="tcp")
        if link.laddr and link.status == psutil.CONN_LISTEN and not _is_loopback_ip(link.laddr.ip)
    }
    return sorted(found, key=lambda listener: (listener.port, listener.ip))


def _program(pid: int | None) -> str:
    """Return the program of a process by its command line; empty if it is another one."""
    import psutil

    with suppress(psutil.Error):
        command = " ".join(psutil.Process(pid).cmdline()) if pid else ""
        return next((name for name, words in PROGRAMS.items() if words.search(command)), "")
    return ""


def _is_loopback_ip(ip: str) -> bool:
    return ip == "::1" or ip.removeprefix("::ffff:").startswith("127.")


def _service(listener: Listener) -> str:
    """Return the service that answers without a token at the socket; empty if none does."""
    import http.client
    import urllib.request

    ip = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listener.ip, listener.ip)  # noqa: S104
    host = f"[{ip}]" if ":" in ip else ip
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for path, (service, answer) in SERVICES.items():
        with (
            suppress(OSError, http.client.HTTPException),
            opener.open(f"http://{host}:{listener.port}{path}", timeout=1.0) as response,
        ):
            if answer.search(response.read(1_000_000)):
                return service
    return ""


def _clusters(store_path: str) -> Iterator[Finding]:
    """Check that the token of each cluster file is private and is sent encrypted."""
    from launch.cluster.config import FOLDER, load_cluster
    from launch.cluster.ray_jobs_client import is_loopback

    for path in sorted(FOLDER.glob("*.yaml")):
        name = f"cluster {path.stem}"
        try:
            cluster = load_cluster(path.stem, store_path)
        except HeadwaterError as error:
            yield Finding(name, "fail", str(error), error.remedy)
            continue
        has_token = cluster.file.token_path or cluster.file.token_env
        if not has_token and not is_loopback(cluster.address):
            found = f"{cluster.address} has no token"
            yield Finding(name, "fail", found, f"set token_path or token_env in {path}")
        elif not is_loopback(cluster.address) and cluster.address.startswith("http://"):
            found = f"{cluster.address}: the token is sent unencrypted"
            yield Finding(name, "warn", found, "use a tunnel, https or a private network")
        else:
            yield _token(name, cluster.address, cluster.token_path)


def _token(name: str, address: str, path: Path | None) -> Finding:
    if path and path.exists() and path.stat().st_mode & 0o077:
        return Finding(name, "fail", f"other users can read {path}", f"chmod 600 {path}")
    return Finding(name, "ok", address)


def _mlflow() -> Finding:
    from launch.tracking.mlflow_client import hide_credentials

    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        return Finding("MLflow", "ok", "SQLite inside the store")
    from launch.cluster.preflight import check_mlflow

    try:
        check_mlflow(uri)
    except HeadwaterError as error:
        return Finding("MLflow", "warn", error.message, error.remedy)
    return Finding("MLflow", "ok", hide_credentials(uri))
