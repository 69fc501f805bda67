"""`doctor`: does this machine have what a run needs, and is nothing open that should be closed?

Each check is one function that returns what it found. `fail` ends in exit code 1, `warn` does not.
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
from rich.text import Text

from launch.ui import console, formatting
from launch.ui.options import json_option, open_store, store_option
from pipeline.errors import HeadwaterError

GIB = 1024**3
DISK = 10 * GIB
SHARED = 1 * GIB
SOCKET = (
    "/headwater-4194304-abcdefgh/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
)
STALE = 600.0  # seconds after which nobody is compiling any more
PACKAGES = {"torch": "2.13", "deepspeed": "0.19", "ray": "2.54", "mlflow": "3.7"}
"""The least versions: older Ray and MLflow have holes that are known."""

Level = Literal["ok", "warn", "fail"]
_VERSION = re.compile(rb"\d+\.\d+")  # what MLflow answers
LEVELS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    level: Level
    found: str
    remedy: str = ""


@click.command()
@store_option
@json_option
def doctor(store_path: str, as_json: bool) -> None:
    """Check the environment and its security. Exit code 1 if something will not work or is open."""
    findings = list(examine(store_path))
    if as_json:
        console.print_json([asdict(finding) for finding in findings])
    else:
        _show(findings)
    if any(finding.level == "fail" for finding in findings):
        sys.exit(1)


def examine(store_path: str) -> Iterator[Finding]:
    """All checks, in the order in which a run would meet them."""
    yield _python()
    for name, least in PACKAGES.items():
        yield _package(name, least)
    yield _compiler()
    store = open_store(store_path).root
    checks: list[Callable[[], Iterator[Finding]]] = [
        lambda: iter([_disk(store)]),
        lambda: iter([_writable("store", store)]),
        lambda: iter([_writable("home", Path.home())]),
        lambda: iter([_sockets()]),
        _shared_memory,
        lambda: iter([_locks()]),
        _authentication,
        lambda: iter([_listeners()]),
        lambda: _clusters(store_path),
        lambda: iter([_tracking()]),
    ]
    for check in checks:
        yield from check()


def _show(findings: list[Finding]) -> None:
    table = console.make_table("", "check", "found", flexible=["found"])
    for finding in findings:
        mark, style = LEVELS[finding.level]
        found = Text(finding.found)
        if finding.remedy:
            found.append(f"\n{finding.remedy}", "cyan")
        table.add_row(Text(mark, style=style), Text(finding.check), found)
    console.print_table(table)
    bad = sum(finding.level == "fail" for finding in findings)
    doubtful = sum(finding.level == "warn" for finding in findings)
    if bad:
        console.echo(f"{bad} to mend, {doubtful} to look at", "red")
    else:
        console.echo(f"fit to run, {doubtful} to look at" if doubtful else "fit to run", "green")


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores"
    fits = sys.version_info[:2] == (3, 11)
    remedy = "" if fits else "make install, with Python 3.11"
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
    remedy = "install g++, if a stage wants DeepSpeed's compiled operators"
    return Finding("compiler", "warn", "no C++ compiler", remedy)


def _disk(root: Path) -> Finding:
    place = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(place).free
    remedy = "" if free >= DISK else "headwater gc says what can go"
    level: Level = "ok" if free >= DISK else "warn"
    return Finding("disk", level, f"{formatting.size(free)} free at {place}", remedy)


def _writable(what: str, folder: Path) -> Finding:
    place = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            return Finding(what, "ok", f"{folder} is writable")
    except OSError as error:
        said = f"{folder}: {(error.strerror or str(error)).lower()}"
    remedy = "set HOME to a folder of yours" if what == "home" else "name another with --store"
    return Finding(what, "fail" if what == "store" else "warn", said, remedy)


def _sockets() -> Finding:
    """Ray's sockets lie deep under the temporary folder, and may have 107 characters."""
    root = tempfile.gettempdir()
    if len(root) + len(SOCKET) <= 107:
        return Finding("temporary", "ok", root)
    found = f"{root} is too long for Ray's sockets"
    return Finding("temporary", "fail", found, "export TMPDIR=/tmp")


def _shared_memory() -> Iterator[Finding]:
    if not Path("/dev/shm").is_dir():  # noqa: S108
        return
    free = shutil.disk_usage("/dev/shm").free  # noqa: S108
    level: Level = "ok" if free >= SHARED else "warn"
    remedy = "" if free >= SHARED else "a container wants --shm-size=2gb"
    yield Finding("shared memory", level, f"{formatting.size(free)} free", remedy)


def _locks() -> Finding:
    """A compile that was killed leaves a lock file, on which every later run waits for ever."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions"))
    stale = []
    with suppress(OSError):
        stale = [
            lock
            for lock in root.rglob("lock")
            if time.time() - lock.stat().st_mtime > STALE and lock.is_file()
        ]
    if not stale:
        return Finding("compile locks", "ok", "none is stale")
    names = " ".join(str(lock) for lock in stale)
    return Finding("compile locks", "fail", f"{len(stale)} left by killed compiles", f"rm {names}")


def _authentication() -> Iterator[Finding]:
    """RAY_AUTH_MODE=disabled is tolerable only while nothing listens beyond loopback."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode.lower() != "disabled":
        yield Finding(
            "Ray tokens", "ok", f"RAY_AUTH_MODE is {mode or 'unset: local Rays have one'}"
        )
        return
    open_ones = _ray_listeners()
    level: Level = "fail" if open_ones else "warn"
    found = "RAY_AUTH_MODE=disabled" + (f", and Ray listens on {open_ones[0]}" if open_ones else "")
    yield Finding("Ray tokens", level, found, "unset RAY_AUTH_MODE, or set it to token")


def _listeners() -> Finding:
    """Dashboards and tracking servers that other machines can reach without a token."""
    bare = [where for where in _ray_listeners(dashboards=True) if _answers_without_token(where)]
    if not bare:
        return Finding("open servers", "ok", "nothing of ours answers other machines unasked")
    remedy = "bind 127.0.0.1, and switch tokens on: RAY_AUTH_MODE=token"
    return Finding("open servers", "fail", f"{', '.join(bare)} answers without a token", remedy)


def _ray_listeners(dashboards: bool = False) -> list[str]:
    """host:port of Ray's (and MLflow's) processes that listen beyond loopback."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if not any(name in words for name in _names(dashboards)):
                continue
            for link in process.net_connections(kind="tcp"):
                if link.status == psutil.CONN_LISTEN and not _loopback(link.laddr.ip):
                    found.append(f"{link.laddr.ip}:{link.laddr.port}")
    return sorted(set(found))


def _names(dashboards: bool) -> tuple[str, ...]:
    if dashboards:
        return ("dashboard/dashboard.py", "mlflow server", "mlflow.server")
    return ("dashboard/dashboard.py", "gcs_server", "raylet/raylet")


def _loopback(ip: str) -> bool:
    return ip == "::1" or ip.removeprefix("::ffff:").startswith("127.")


def _answers_without_token(where: str) -> bool:
    """Asked at the very address on which it listens: it may listen on no other."""
    import http.client
    import urllib.request

    ip, _, port = where.rpartition(":")
    ip = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(ip, ip)  # noqa: S104
    host = f"[{ip}]" if ":" in ip else ip
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for path in ("/api/version", "/version"):
        with (
            suppress(OSError, http.client.HTTPException),
            opener.open(f"http://{host}:{port}{path}", timeout=1.0) as answer,
        ):
            said = answer.read(1000)
            if b"ray_version" in said or _VERSION.match(said):
                return True
    return False


def _clusters(store_path: str) -> Iterator[Finding]:
    """Each cluster that is described: its token is private, and travels privately."""
    from launch.cluster.config import FOLDER, load_cluster
    from launch.cluster.ray_jobs_client import is_loopback

    for path in sorted(FOLDER.glob("*.yaml")):
        name = f"cluster {path.stem}"
        try:
            cluster = load_cluster(path.stem, store_path)
        except HeadwaterError as error:
            yield Finding(name, "fail", str(error), error.remedy)
            continue
        named = cluster.file.token_path or cluster.file.token_env
        if not named and not is_loopback(cluster.address):
            found = f"{cluster.address} has no token"
            yield Finding(name, "fail", found, f"name token_path or token_env in {path}")
        elif not is_loopback(cluster.address) and cluster.address.startswith("http://"):
            found = f"{cluster.address}: the token travels unencrypted"
            yield Finding(name, "warn", found, "use a tunnel, https or a private network")
        else:
            yield _token(name, cluster.address, cluster.token_path)


def _token(name: str, address: str, path: Path | None) -> Finding:
    if path and path.exists() and path.stat().st_mode & 0o077:
        return Finding(name, "fail", f"others can read {path}", f"chmod 600 {path}")
    return Finding(name, "ok", address)


def _tracking() -> Finding:
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
