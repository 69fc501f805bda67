"""Capture of a stage's output, including C++ and child processes, in the attempt's log.

The file descriptors 1 and 2 lead to a small separate process, which escapes what could move a
terminal's cursor and redacts secrets. It outlives the stage: the last lines of a process that was
killed, or that aborted in native code, are the important ones.
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
"""The environment variable that names the driver a process belongs to, for the process reaper."""
LINE_LIMIT = 8192  # bytes of one line of the log; a longer one is split
CLOSE_TIMEOUT = 5.0  # seconds to wait for the log at the end
_ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def capture_output(log: Path, secrets: Iterable[str] = ()) -> Iterator[None]:
    """Send the output of this process and its children to `log` inside the block.

    Args:
        log: the file to append to; its folder exists.
        secrets: names of environment variables whose values are redacted.
    """
    command = [sys.executable, "-S", "-m", "launch.output_capture", str(log), *secrets]
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    pump = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), DRIVER_VARIABLE: ""},
        start_new_session=True,  # neither Ctrl-C nor the reaper may end the log
    )
    assert pump.stdin is not None
    try:
        with ExitStack() as undo:
            for number, stream, redirect in (
                (1, sys.stdout, redirect_stdout),
                (2, sys.stderr, redirect_stderr),
            ):
                stream.flush()
                saved = os.dup(number)
                undo.callback(os.close, saved)
                undo.callback(os.dup2, saved, number)
                os.dup2(pump.stdin.fileno(), number)
                lines = os.fdopen(number, "w", buffering=1, errors="replace", closefd=False)
                undo.callback(_flush, lines)
                undo.enter_context(redirect(lines))
            yield
    finally:
        pump.stdin.close()
        with suppress(subprocess.TimeoutExpired):  # a child that still prints keeps it open
            pump.wait(CLOSE_TIMEOUT)


def _flush(stream: TextIO) -> None:
    with suppress(OSError):
        stream.flush()


def copy_lines(source: BinaryIO, log: Path, secrets: Iterable[str] = ()) -> None:
    """Copy lines to a log until the source ends: timestamped, redacted, escaped.

    Of a progress bar only the last state is kept. A line that cannot be written is lost, because
    the writer must never be blocked or killed by its log.
    """
    while raw := source.readline(LINE_LIMIT):
        text = raw.decode(errors="replace").rstrip("\r\n").rpartition("\r")[2]
        line = f"{time.strftime('%H:%M:%S')} {escape_control_characters(redact(text, secrets))}\n"
        with suppress(OSError), log.open("a") as file:
            file.write(line)


if __name__ == "__main__":  # pragma: no cover - runs in a process of its own
    copy_lines(sys.stdin.buffer, Path(sys.argv[1]), sys.argv[2:])
