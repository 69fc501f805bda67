"""Leases: of all runs that want to make an artifact, one does.

A lease is a folder with one small file an epoch. Whoever creates the file of the next epoch
(exclusively: the file system lets one win) holds the lease; its epoch is the fencing token, and
it only grows. The holder adds one to a counter every few seconds. A waiter takes over when the
holder released, when its process is dead on this very machine, or when the waiter itself has
watched the counter stand still for `expiry` seconds of its own monotonic clock: no two clocks
are ever compared. A holder that was only slow finds a newer epoch and must not commit. A disk
that cannot be read for a while says nothing: it neither takes a lease away nor gives one.

    <store>/leases/<uses>/<fp>/00000007.json       who holds epoch 7
    <store>/leases/<uses>/<fp>/00000007.beat       the counter
    <store>/leases/<uses>/<fp>/00000007.released   it is done
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Self

from pipeline.atomic_io import disk_errors
from pipeline.errors import Failure, LeaseLost

HEARTBEAT = 2.0  # seconds between two steps of the counter
EXPIRY = 30.0  # seconds without a step after which a waiter takes over
POLL = 0.1  # seconds between two looks of a waiter

Holder = dict[str, Any]


class Lease:
    """A claim on one name; not held until `acquire` says so."""

    def __init__(
        self, folder: Path, owner: str, *, heartbeat: float = HEARTBEAT, expiry: float = EXPIRY
    ) -> None:
        self.folder = folder
        self.owner = owner
        self.heartbeat = heartbeat
        self.expiry = expiry
        self.epoch = 0
        """The fencing token: 0 while nothing was acquired."""
        self.lost = threading.Event()
        """Set when another run took over; costs nothing to look at."""
        self._nonce = secrets.token_hex(8)
        self._stop = threading.Event()
        self._seen: tuple[object, float] = (None, time.monotonic())

    def acquire(self, timeout: float | None = 0.0) -> bool:
        """Try to hold it, for `timeout` seconds (None: for ever). Returns whether it is held.

        What was watched of another holder is remembered between calls.
        """
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while not self._try():
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(POLL, self.heartbeat))
        return True

    def is_held(self) -> bool:
        """Whether it is still ours; looks at the disk.

        Raises:
            Failure: the disk cannot be read, so nobody knows.
        """
        if not self.epoch or self.lost.is_set():
            return False
        if not self._is_ours(self.epoch):
            self.lost.set()
        return not self.lost.is_set()

    def check(self) -> None:
        """Pass only while the lease is ours.

        Raises:
            LeaseLost: it was never acquired, was released, or another run took over.
            Failure: the disk cannot be read, so nobody knows.
        """
        if not self.is_held():
            holder = self.holder() or {}
            raise LeaseLost(
                f"the lease belongs to {holder.get('owner', 'nobody')} now",
                where=str(self.folder),
                remedy="`headwater list` shows the run that makes it; resume this one afterwards",
            )

    def release(self) -> None:
        """Let others have it; does nothing if it is not held."""
        self._stop.set()
        with suppress(OSError, Failure):
            if self.is_held():
                self._create(self._file(self.epoch, "released"), b"")
        self.epoch = 0

    def holder(self) -> Holder | None:
        """Who holds it: {owner, host, pid, …}; None if nobody does."""
        with disk_errors(self.folder, to="read"):
            top = self._top()
            return None if not top or self._file(top, "released").exists() else self._read(top)

    def alive(self) -> bool:
        """Whether the holder seems to be at work, judged at one look: for display only.

        The age of its last heartbeat is measured by the file system's own clock.
        """
        with disk_errors(self.folder, to="read"):
            top = self._top()
            holder = self.holder()
            if holder is None or _is_dead(holder):
                return False
            if holder.get("node") and holder["node"] == machine_id():
                return True
            return self._age(self._file(top, "beat")) < self.expiry

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _try(self) -> bool:
        """One attempt: take the next epoch if the newest one is free."""
        try:
            with disk_errors(self.folder):
                top = self._top()
                if top and not self._is_free(top):
                    return False
                self.folder.mkdir(parents=True, exist_ok=True)
                self._create(self._file(top + 1, "json"), json.dumps(self._identity()).encode())
        except (FileExistsError, FileNotFoundError):  # another was quicker, or removed the folder
            return False
        if not self._is_ours(top + 1):  # a listing can miss a file that appears while it is made
            return False
        self.epoch = top + 1
        self.lost.clear()
        self._forget_before(self.epoch)
        self._stop = threading.Event()
        beat = threading.Thread(target=self._beats, args=(self._stop, self.epoch), daemon=True)
        beat.start()
        return True

    def _is_free(self, epoch: int) -> bool:
        """Whether the holder of that epoch is gone, as far as this process can know."""
        try:
            holder, counter = self._read(epoch), self._counter(epoch)
            if self._file(epoch, "released").exists() or _is_dead(holder):
                return True
        except OSError:
            self._seen = (None, time.monotonic())  # what was not seen did not stand still
            return False
        seen = (epoch, holder.get("nonce"), counter)
        if seen != self._seen[0]:
            self._seen = (seen, time.monotonic())
        return time.monotonic() - self._seen[1] >= self.expiry

    def _is_ours(self, epoch: int) -> bool:
        with disk_errors(self.folder, to="read"):
            return self._top() == epoch and self._read(epoch).get("nonce") == self._nonce

    def _beats(self, stop: threading.Event, epoch: int) -> None:
        """Step the counter until released or lost; a disk that refuses is a missed beat."""
        count = 0
        while not stop.is_set() and not self.lost.is_set():
            with suppress(OSError, Failure):
                if self.is_held():
                    self._beat(epoch, count)
            count += 1
            stop.wait(self.heartbeat)

    def _identity(self) -> Holder:
        return {
            "owner": self.owner,
            "nonce": self._nonce,
            "host": platform.node(),
            "node": machine_id(),
            "pid": os.getpid(),
            "born": process_start_time(os.getpid()),
        }

    def _file(self, epoch: int, suffix: str) -> Path:
        return self.folder / f"{epoch:08d}.{suffix}"

    def _create(self, path: Path, content: bytes) -> None:
        """Create a file exclusively: of several processes one succeeds."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o644)
        try:
            os.write(descriptor, content)
            os.fsync(descriptor)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def _beat(self, epoch: int, count: int) -> None:
        """Write the same length over the old number: a full disk cannot stop it."""
        descriptor = os.open(
            self._file(epoch, "beat"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
        try:
            os.write(descriptor, f"{count:020d}".encode())
        finally:
            os.close(descriptor)

    def _counter(self, epoch: int) -> str:
        try:
            return self._file(epoch, "beat").read_text()
        except FileNotFoundError:
            return ""

    def _top(self) -> int:
        try:
            return max(
                (int(p.stem) for p in self.folder.iterdir() if p.suffix == ".json"), default=0
            )
        except FileNotFoundError:
            return 0

    def _read(self, epoch: int) -> Holder:
        """An epoch's holder; empty while its file is being written or was removed."""
        try:
            return dict(json.loads(self._file(epoch, "json").read_text()))
        except (FileNotFoundError, ValueError):
            return {}

    def _forget_before(self, epoch: int) -> None:
        with suppress(OSError):
            for path in self.folder.iterdir():
                if path.stem.isdigit() and int(path.stem) < epoch:
                    path.unlink(missing_ok=True)

    def _age(self, path: Path) -> float:
        """Seconds since a file was written, both times given by the same file system."""
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
    """This machine since its last start, and this process table: where a pid means something.

    Empty where the system does not say, so that no process is ever judged by its pid there.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        table = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return ""
    return f"{platform.node()} {boot} {table}"


def _is_dead(holder: Holder) -> bool:
    """Whether the holder's process is known to be gone: only ever true on its own machine."""
    if not holder.get("node") or holder["node"] != machine_id():
        return False
    return bool(process_start_time(holder["pid"]) != holder["born"])


def process_start_time(pid: int) -> str:
    """When a process began, in ticks since the machine's start; empty if it is gone.

    A pid alone is not enough: it is given to another process one day.

    Raises:
        OSError: the system does not say (too many open files).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]
