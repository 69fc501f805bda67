"""The wish to stop a run: Ctrl-C, SIGTERM, or the cancel file that any shell can write.

Asked once, stages stop at their next safe point and are killed after a grace; asked twice, or
with the word `now` in the cancel file, they are killed at once. Either way a resume goes on.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from pipeline.atomic_io import write_atomic
from pipeline.errors import HeadwaterError

CANCELLED, INTERRUPTED = "cancelled", "interrupted"
POLL_INTERVAL = 0.1  # seconds between two looks at the cancel file while a long call goes on


class CancellationToken:
    """Whether and how a run was asked to stop: by signals, or by its cancel file."""

    def __init__(self, file: Path, grace: float) -> None:
        self.reason = ""
        """`interrupted` (a signal) or `cancelled` (the word `cancel` in the file)."""
        self._file = file
        self._grace = grace
        self._signals = 0
        self._deadline = float("inf")
        self._interruptible = False

    @property
    def requested(self) -> bool:
        """Whether to stop at the next safe point."""
        if self._signals and not self.reason:
            self._ask(INTERRUPTED, self._grace)
            with suppress(HeadwaterError, OSError):  # disk full: killed after the grace
                write_atomic(self._file, "interrupt\n")
        if word := self._word():
            reason = CANCELLED if "cancel" in word else INTERRUPTED
            self._ask(reason, 0.0 if "now" in word else self._grace)
        return bool(self.reason)

    @property
    def immediate(self) -> bool:
        """Whether to stop without waiting for a safe point."""
        return self.expired(0.0)

    def expired(self, leave: float) -> bool:
        """Whether stages still run `leave` seconds after they were to be killed."""
        if self._signals > 1:
            self.cancel_now()
        return time.monotonic() > self._deadline + leave

    def cancel_now(self) -> None:
        """Stop without waiting for anything."""
        self._ask(INTERRUPTED, 0.0)

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM ask, inside the block; without effect in other threads."""
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
        """A long call, with no stage at work, that the wish to stop breaks off (in any thread but
        the main one it goes on)."""
        over = threading.Event()
        watcher = threading.Thread(
            target=self._break_off, args=(threading.get_ident(), over), daemon=True
        )
        self._interruptible = True
        if threading.current_thread() is threading.main_thread():
            watcher.start()
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            self._signals = max(self._signals, 1)
        finally:
            self._interruptible = False
            over.set()
            if watcher.is_alive():
                watcher.join()

    def _break_off(self, thread: int, over: threading.Event) -> None:
        """Turn a cancel file that appears into a signal, which reaches also a call that waits."""
        while not over.wait(POLL_INTERVAL):
            if self._word() and self.requested:
                signal.pthread_kill(thread, signal.SIGINT)
                return

    def _count(self, number: int, frame: FrameType | None) -> None:
        """Handlers may run at any instruction: this one takes no lock and touches no file."""
        self._signals += 1
        if self._interruptible:
            raise KeyboardInterrupt

    def _word(self) -> str:
        """What the cancel file says; empty if there is none."""
        try:
            return self._file.read_text() or INTERRUPTED
        except OSError:  # there is none, or the disk refuses: asked again in a moment
            return ""

    def _ask(self, reason: str, grace: float) -> None:
        """The first reason stays; the earliest deadline counts."""
        self._deadline = min(self._deadline, time.monotonic() + grace)
        self.reason = self.reason or reason
