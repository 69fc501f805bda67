"""Leases: of all runs that need an artifact, one makes it.

A lease is a folder with one small file per epoch. The process that creates the file of the next
epoch (exclusively: the file system lets one succeed) holds the lease; its epoch is the fencing
token, and it only grows. The holder increments a counter every few seconds. A waiter takes over
when the holder released the lease, when its process is dead on this very machine, or when the
waiter itself has seen the counter unchanged for `expiry` seconds of its own monotonic clock: no two
clocks are ever compared. A holder that was only slow finds a newer epoch and must not commit. While
the disk cannot be read, a lease is neither lost nor won.

    <store>/leases/<uses>/<fp>/00000007.json       the holder of epoch 7
    <store>/leases/<uses>/<fp>/00000007.beat       the counter
    <store>/leases/<uses>/<fp>/00000007.released   the holder released it
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import threading
import time
from contextlib import AbstractContextManager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.atomic_io import disk_errors, list_folder
from pipeline.errors import Failure, LeaseLost

HEARTBEAT = 2.0  # seconds between two steps of the counter
EXPIRY = 30.0  # seconds without a step after which a waiter takes over
POLL_INTERVAL = 0.1  # seconds between two tries of a waiter

Holder = dict[str, Any]


class Lease(AbstractContextManager["Lease"]):
    """A claim on one name; held once `acquire` returns True."""

    def __init__(
        self, folder: Path, owner: str, *, heartbeat: float = HEARTBEAT, expiry: float = EXPIRY
    ) -> None:
        self.folder = folder
        self.owner = owner
        self.heartbeat = heartbeat
        self.expiry = expiry
        self.epoch = 0
        """The fencing token; 0 while the lease is not held."""
        self.lost = threading.Event()
        """Set when another run took over; reading it costs no I/O."""
        self._nonce = secrets.token_hex(8)
        self._stop = threading.Event()
        self._seen: tuple[object, float] = (None, time.monotonic())

    def acquire(self, timeout: float | None = 0.0) -> bool:
        """Try to acquire it for `timeout` seconds (None: forever); return whether it is held.

        Observations of another holder's counter are kept between calls.
        """
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while not self._try_once():
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(POLL_INTERVAL, self.heartbeat))
        return True

    def is_held(self) -> bool:
        """Return whether it is still held by this process, read from the disk.

        Raises:
            Failure: the disk cannot be read.
        """
        if not self.epoch or self.lost.is_set():
            return False
        if not self._is_ours(self.epoch):
            self.lost.set()
        return not self.lost.is_set()

    def check(self) -> None:
        """Raise unless this process holds the lease.

        Raises:
            LeaseLost: it was never acquired, was released, or another run took over.
            Failure: the disk cannot be read.
        """
        if not self.is_held():
            owner = (self.holder() or {}).get("owner", "no process")
            remedy = "`headwater list` shows the run that makes it; resume this one afterwards"
            raise LeaseLost(
                f"the lease belongs to {owner} now", where=str(self.folder), remedy=remedy
            )

    def release(self) -> None:
        """Let other runs acquire it; does nothing if it is not held."""
        self._stop.set()
        with suppress(OSError, Failure):
            if self.is_held():
                self._create(self._file(self.epoch, "released"), b"")
        self.epoch = 0

    def holder(self) -> Holder | None:
        """Return the holder, {owner, host, pid, …}; None without one."""
        with disk_errors(self.folder, to="read"):
            top = self._newest_epoch()
            return None if not top or self._file(top, "released").exists() else self._read(top)

    def alive(self) -> bool:
        """Return whether the holder seems to be alive, from one observation: for display only.

        The age of its last heartbeat is measured by the file system's own clock.
        """
        with disk_errors(self.folder, to="read"):
            top = self._newest_epoch()
            holder = self.holder()
            if holder is None or _is_dead(holder):
                return False
            if holder.get("node") and holder["node"] == machine_id():
                return True
            return self._age(self._file(top, "beat")) < self.expiry

    def __exit__(self, *_: object) -> None:
        self.release()

    def _try_once(self) -> bool:
        """Take the next epoch if the newest one is free."""
        try:
            with disk_errors(self.folder):
                top = self._newest_epoch()
                if top and not self._is_free(top):
                    return False
                self.folder.mkdir(parents=True, exist_ok=True)
                self._create(self._file(top + 1, "json"), json.dumps(self._identity()).encode())
        except (FileExistsError, FileNotFoundError):  # another process was faster or collects it
            return False
        if not self._is_ours(top + 1):  # a listing can miss a file that is created meanwhile
            return False
        self.epoch = top + 1
        self.lost.clear()
        self._remove_before(self.epoch)
        self._stop = threading.Event()
        args = (self._stop, self.epoch)
        threading.Thread(target=self._heartbeat_loop, args=args, daemon=True).start()
        return True

    def _is_free(self, epoch: int) -> bool:
        """Return whether the holder of that epoch is known to be gone."""
        try:
            holder, counter = self._read(epoch), self._text(epoch, "beat")
            if self._file(epoch, "released").exists() or _is_dead(holder):
                return True
        except OSError:
            self._seen = (None, time.monotonic())  # not read is not the same as unchanged
            return False
        seen = (epoch, holder.get("nonce"), counter)
        if seen != self._seen[0]:
            self._seen = (seen, time.monotonic())
        return time.monotonic() - self._seen[1] >= self.expiry

    def _is_ours(self, epoch: int) -> bool:
        with disk_errors(self.folder, to="read"):
            return self._newest_epoch() == epoch and self._read(epoch).get("nonce") == self._nonce

    def _heartbeat_loop(self, stop: threading.Event, epoch: int) -> None:
        """Increment the counter until released or lost; an I/O error is a missed beat."""
        count = 0
        while not stop.is_set() and not self.lost.is_set():
            with suppress(OSError, Failure):
                if self.is_held():  # the same length over the old number fits on a full disk
                    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
                    descriptor = os.open(self._file(epoch, "beat"), flags, 0o666)
                    try:
                        os.write(descriptor, f"{count:020d}".encode())
                    finally:
                        os.close(descriptor)
            count += 1
            stop.wait(self.heartbeat)

    def _identity(self) -> Holder:
        process = {"pid": os.getpid(), "born": process_start_time(os.getpid())}
        place = {"host": platform.node(), "node": machine_id()}
        return {"owner": self.owner, "nonce": self._nonce, **place, **process}

    def _file(self, epoch: int, suffix: str) -> Path:
        return self.folder / f"{epoch:08d}.{suffix}"

    def _create(self, path: Path, content: bytes) -> None:
        """Create a file exclusively: of several processes one succeeds."""
        with path.open("xb", buffering=0) as file:
            try:
                os.write(file.fileno(), content)
                os.fsync(file.fileno())
            except OSError:
                path.unlink(missing_ok=True)
                raise

    def _text(self, epoch: int, suffix: str) -> str:
        try:
            return self._file(epoch, suffix).read_text(errors="replace")  # a bit may have flipped
        except FileNotFoundError:
            return ""

    def _newest_epoch(self) -> int:
        files = list_folder(self.folder)
        return max((int(file.stem) for file in files if file.suffix == ".json"), default=0)

    def _read(self, epoch: int) -> Holder:
        """Return an epoch's holder; empty while its file is being written or was removed."""
        with suppress(ValueError):
            return dict(json.loads(self._text(epoch, "json")))
        return {}

    def _remove_before(self, epoch: int) -> None:
        with suppress(OSError):
            for path in self.folder.iterdir():
                if path.stem.isdigit() and int(path.stem) < epoch:
                    path.unlink(missing_ok=True)

    def _age(self, path: Path) -> float:
        """Return the seconds since a file was written, both times by the file system's clock."""
        probe = self.folder / f"probe-{secrets.token_hex(4)}"
        try:
            probe.touch()
            now = probe.stat().st_mtime
            probe.unlink()
        except OSError:
            now = time.time()
        try:
            return now - path.stat().st_mtime
        except OSError:
            return 0.0


@cache
def machine_id() -> str:
    """Return an id of this machine, its boot and its PID namespace: the scope of a pid.

    Empty if the system does not provide it; then no process is considered dead by its pid.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        table = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return ""
    return f"{platform.node()} {boot} {table}"


def _is_dead(holder: Holder) -> bool:
    """Return whether the holder's process is known to be gone; only true on its own machine."""
    if not holder.get("node") or holder["node"] != machine_id():
        return False
    return bool(process_start_time(holder["pid"]) != holder["born"])


def process_start_time(pid: int) -> str:
    """Return when a process started, in ticks since boot; empty if it is gone.

    Together with the pid it identifies a process, because the system reuses pids.

    Raises:
        OSError: it cannot be read (too many open files).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]
