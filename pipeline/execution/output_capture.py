"""What a stage's process prints, C++ and its children included, as lines of the attempt's log.

The descriptors 1 and 2 lead to a small process of its own, which escapes what could move a
terminal's cursor and masks secrets. It outlives the stage: the last words of a process that
was killed, or that aborted in native code, are the ones that matter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from pipeline.redaction import escape_control_characters, redact

DRIVER_VARIABLE = "HEADWATER_DRIVER"
"""The environment variable that says which driver a process belongs to, for those that reap."""
LONGEST = 8192  # bytes of one line of the log; a longer one is folded
CLOSE_TIMEOUT = 5.0  # seconds that the log is waited for at the end
_ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def capture_output(log: Path, secrets: Iterable[str] = ()) -> Iterator[None]:
    """Send what this process and its children print to `log` until the end of the block.

    Args:
        log: the file to append to; its folder exists.
        secrets: names of environment variables whose values are masked.
    """
    command = [sys.executable, "-S", "-m", "pipeline.execution.output_capture", str(log), *secrets]
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    pump = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), DRIVER_VARIABLE: ""},
        start_new_session=True,  # neither Ctrl-C nor the reaper may silence the log
    )
    assert pump.stdin is not None
    try:
        with _printing_to(pump.stdin.fileno()):
            yield
    finally:
        pump.stdin.close()
        with suppress(subprocess.TimeoutExpired):  # a child that still prints keeps it
            pump.wait(CLOSE_TIMEOUT)


@contextmanager
def _printing_to(descriptor: int) -> Iterator[None]:
    """Python's streams and the descriptors under them lead elsewhere inside the block."""
    with ExitStack() as undo:
        for number, stream, redirect in (
            (1, sys.stdout, redirect_stdout),
            (2, sys.stderr, redirect_stderr),
        ):
            stream.flush()
            saved = os.dup(number)
            undo.callback(os.close, saved)
            undo.callback(os.dup2, saved, number)
            os.dup2(descriptor, number)
            undo.enter_context(redirect(undo.enter_context(_lines_to(number))))
        yield


@contextmanager
def _lines_to(number: int) -> Iterator[TextIO]:
    stream = os.fdopen(number, "w", buffering=1, errors="replace", closefd=False)
    try:
        yield stream
    finally:
        with suppress(OSError):
            stream.flush()


def pump(source: BinaryIO, log: Path, secrets: Iterable[str] = ()) -> None:
    """Copy lines to a log until the source ends: stamped, masked, escaped, progress bars folded.

    A disk that refuses a line loses it; the writer must never be blocked or killed by its log.
    """
    while raw := source.readline(LONGEST):
        text = raw.decode(errors="replace").rstrip("\r\n").rpartition("\r")[2]
        line = f"{time.strftime('%H:%M:%S')} {escape_control_characters(redact(text, secrets))}\n"
        with suppress(OSError), log.open("a") as file:
            file.write(line)


if __name__ == "__main__":  # pragma: no cover - runs in a process of its own
    pump(sys.stdin.buffer, Path(sys.argv[1]), sys.argv[2:])
