"""Cancellation of a run by signal (Ctrl-C, SIGTERM) or by its cancel file, writable from any shell.

After the first request stages stop at their next safe point and are killed after a grace period;
after the second, or with `now` in the cancel file, they are killed at once. Both can be resumed.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Literal

from pipeline.atomic_io import write_atomic
from pipeline.errors import HeadwaterError

CancelReason = Literal["cancelled", "interrupted"]

POLL_INTERVAL = 0.1  # seconds between two reads of the cancel file during a long call


class CancellationToken:
    """The requests to stop a run so far, from signals and its cancel file."""

    def __init__(self, file: Path, grace: float) -> None:
        self.reason: CancelReason | None = None
        """`interrupted` (a signal) or `cancelled` (the word `cancel` in the file)."""
        self._file = file
        self._grace = grace
        self._signals = 0
        self._deadline = float("inf")
        self._interruptible = False

    @property
    def requested(self) -> bool:
        """True once the run is to stop at the next safe point."""
        if self._signals and not self.reason:
            self._cancel("interrupted", self._grace)
            with suppress(HeadwaterError, OSError):  # disk full: stages are killed after the grace
                write_atomic(self._file, "interrupt\n")
        if text := self._file_text():
            reason: CancelReason = "cancelled" if "cancel" in text else "interrupted"
            self._cancel(reason, 0.0 if "now" in text else self._grace)
        return self.reason is not None

    def expired(self, extra: float = 0.0) -> bool:
        """Return whether the grace period ended more than `extra` seconds ago: stop at once."""
        if self._signals > 1:
            self.cancel_now()
        return time.monotonic() > self._deadline + extra

    def cancel_now(self) -> None:
        """Request to stop without waiting for a safe point."""
        self._cancel("interrupted", 0.0)

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Count SIGINT and SIGTERM as requests inside the block; no effect in other threads."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {n: signal.signal(n, self._count) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a request interrupt a long call inside the block, in the main thread only.

        No stage may be running meanwhile.
        """
        done = threading.Event()
        args = (threading.get_ident(), done)
        watcher = threading.Thread(target=self._interrupt_on_file, args=args, daemon=True)
        self._interruptible = True
        if threading.current_thread() is threading.main_thread():
            watcher.start()
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            self._signals = max(self._signals, 1)
        finally:
            self._interruptible = False
            done.set()
            if watcher.is_alive():
                watcher.join()

    def _interrupt_on_file(self, thread: int, done: threading.Event) -> None:
        """Turn a cancel file that appears into a signal, which also interrupts a blocking call."""
        while not done.wait(POLL_INTERVAL):
            if self._file_text() and self.requested:
                signal.pthread_kill(thread, signal.SIGINT)
                return

    def _count(self, number: int, frame: FrameType | None) -> None:
        """Count a signal. Handlers run at any instruction: this one takes no lock, does no I/O."""
        self._signals += 1
        if self._interruptible:
            raise KeyboardInterrupt

    def _file_text(self) -> str:
        try:
            return self._file.read_text(errors="replace") or "interrupted"
        except OSError:  # it does not exist, or cannot be read now: it is read again soon
            return ""

    def _cancel(self, reason: CancelReason, grace: float) -> None:
        """Record a request: the first reason is kept, the earliest deadline counts."""
        self._deadline = min(self._deadline, time.monotonic() + grace)
        self.reason = self.reason or reason
