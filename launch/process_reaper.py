"""Nobody outlives a driver: a small process that waits for its end and cleans up after it.

It holds one end of a pipe whose other end only the driver has, so that it notices every way in
which a driver can go, SIGKILL included. Then it ends all processes that were started with the
driver's mark in their environment (Ray's agents would stay for a minute, a stage that does not
listen for ever) and removes the driver's scratch folder. That a driver went without a word (it was
killed, or Ray ended it on the spot because the raylet died inside a call) nobody else could say.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.execution.output_capture import DRIVER_VARIABLE

PATIENCE = 8.0  # seconds in which everybody must be gone
GOODBYE = b"goodbye"
LOST = "error: the driver ended without a word; next: headwater resume\n"
_ROOT = Path(__file__).resolve().parents[1]


class Reaper:
    """The driver's end of the pipe."""

    def __init__(self, mark: str, folder: Path) -> None:
        """Watch over processes that have `MARK=mark` in their environment, and a folder."""
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-m", "launch.process_reaper", mark, str(folder)],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            start_new_session=True,  # Ctrl-C in a terminal is not for it
        )

    def close(self) -> None:
        """Have everybody ended now, and wait until they are."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(GOODBYE)
            self._process.stdin.close()
        self._process.wait(2 * PATIENCE)


def reap(mark: str, folder: Path) -> None:
    """End all processes that carry the mark, then remove the folder."""
    deadline = time.monotonic() + PATIENCE
    while (marked := list(_marked(mark))) and time.monotonic() < deadline:
        for pid in marked:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def _marked(mark: str) -> Iterator[int]:
    """Processes, other than this one, that inherited the mark and are no zombies."""
    wanted = f"{DRIVER_VARIABLE}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with suppress(OSError):
                if wanted in folder.joinpath("environ").read_bytes().split(b"\0"):
                    yield int(folder.name)


if __name__ == "__main__":  # pragma: no cover - runs in a process of its own
    if not sys.stdin.buffer.read():
        sys.stderr.write(LOST)
    reap(sys.argv[1], Path(sys.argv[2]))
