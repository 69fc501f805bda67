"""A small process that kills all descendants of a driver when the driver exits.

It holds one end of a pipe whose other end only the driver has, so that it notices every exit of the
driver, SIGKILL included. It then kills all processes with the driver's mark in their environment
(Ray's agents would otherwise stay for a minute, a stage that ignores signals forever), removes the
driver's scratch folder, and reports an exit that the driver could not report itself: because it was
killed, or because Ray ended it when the raylet died during a call.
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

from stages.distributed.output_capture import DRIVER_VARIABLE

REAP_TIMEOUT = 8.0  # seconds until all processes are gone
GOODBYE = b"goodbye"
DRIVER_DIED = "error: the driver was killed; next: headwater resume\n"
_ROOT = Path(__file__).resolve().parents[1]


class Reaper:
    """The driver's end of the pipe.

    Args:
        mark: value of the environment variable that identifies the driver's processes.
        folder: scratch folder to remove.
    """

    def __init__(self, mark: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-m", "launch.process_reaper", mark, str(folder)],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            start_new_session=True,  # so that Ctrl-C in a terminal does not reach it
        )

    def close(self) -> None:
        """Kill all processes now and wait until they have ended."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(GOODBYE)
            self._process.stdin.close()
        self._process.wait(2 * REAP_TIMEOUT)


def reap(mark: str, folder: Path) -> None:
    """Kill all processes with the mark, then remove the folder."""
    deadline = time.monotonic() + REAP_TIMEOUT
    while (marked := list(_marked_processes(mark))) and time.monotonic() < deadline:
        for pid in marked:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def _marked_processes(mark: str) -> Iterator[int]:
    """Yield the ids of all other processes with the mark in their environment, without zombies."""
    wanted = f"{DRIVER_VARIABLE}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with suppress(OSError):
                if wanted in folder.joinpath("environ").read_bytes().split(b"\0"):
                    yield int(folder.name)


if __name__ == "__main__":  # pragma: no cover - runs in a process of its own
    if not sys.stdin.buffer.read():
        sys.stderr.write(DRIVER_DIED)
    reap(sys.argv[1], Path(sys.argv[2]))
