"""Capture of the output of a process, including C++ and child processes, in a log.

The file descriptors 1 and 2 lead to a small separate process, which redacts secrets, splits the
text into lines, and escapes what could move a terminal's cursor. It outlives its writer: the last
lines of a process that was killed, or that aborted in native code, are the important ones.
"""

from __future__ import annotations

import codecs
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TextIO

from pipeline.redaction import escape_control_characters, secret_pattern

DRIVER_VARIABLE = "HEADWATER_DRIVER"
"""The environment variable that names the driver a process belongs to, for the process reaper."""
LINE_LIMIT = 8192  # characters of one line of the log; a longer one is split
READ_SIZE = 65536  # bytes
CLOSE_TIMEOUT = 5.0  # seconds to wait for the log at the end
_ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def capture_output(log: Path, secrets: Iterable[str] = ()) -> Iterator[None]:
    """Send the output of this process and its children to `log` inside the block.

    Args:
        log: the file to append to; its folder exists.
        secrets: names of environment variables whose values are redacted.
    """
    command = [sys.executable, "-S", "-m", "stages.distributed.output_capture", str(log), *secrets]
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


class StreamRedactor:
    """Replacement of secrets in a text that arrives in pieces, wherever a piece ends."""

    def __init__(self, names: Iterable[str]) -> None:
        self._pattern, self._references = secret_pattern(names)
        self._longest = max(map(len, self._references), default=1)
        self._rest = ""

    def feed(self, piece: str, last: bool = False) -> str:
        """Return the text so far without secrets; its end is held back while it may be the begin
        of a secret and is not the last piece."""
        text = self._rest + piece
        end = len(text)
        if not last:
            starts = range(max(0, end - self._longest + 1), end)
            end = next((i for i in starts if self._begins_secret(text[i:])), end)
            # A secret that is complete may be a part of a longer one that is not.
            crossing = [m.start() for m in self._pattern.finditer(text) if m.end() > end]
            end = min([end, *crossing])
        self._rest = text[end:]
        return self._pattern.sub(self._reference, text[:end])

    def _begins_secret(self, text: str) -> bool:
        return any(form.startswith(text) for form in self._references)

    def _reference(self, match: re.Match[str]) -> str:
        return self._references[match[0]]


def copy_lines(source: BufferedReader | BytesIO, log: Path, secrets: Iterable[str] = ()) -> None:
    """Copy lines to a log until the source ends: redacted, then split, escaped and timestamped.

    Of a progress bar only the last state is kept. A line that cannot be written is lost, because
    the writer must never be blocked or killed by its log.
    """
    redactor = StreamRedactor(secrets)
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")  # as in `os.environ`
    rest, raw = "", b"more"
    while raw:
        raw = source.read1(READ_SIZE)
        text = rest + redactor.feed(decoder.decode(raw, final=not raw), last=not raw)
        *lines, rest = text.split("\n")
        if not raw or len(rest) >= LINE_LIMIT:
            lines, rest = ([*lines, rest] if rest else lines), ""
        for line in lines:
            _write_line(line.rstrip("\r").rpartition("\r")[2], log)


def _write_line(line: str, log: Path) -> None:
    """Append a line to the log, in parts of at most `LINE_LIMIT` characters."""
    text = line.encode(errors="surrogateescape").decode(errors="replace")
    now = time.strftime("%H:%M:%S")
    parts = [text[i : i + LINE_LIMIT] for i in range(0, len(text) or 1, LINE_LIMIT)]
    with suppress(OSError), log.open("a") as file:
        file.writelines(f"{now} {escape_control_characters(part)}\n" for part in parts)


if __name__ == "__main__":  # pragma: no cover - runs in a process of its own
    with open(0, "rb") as standard_input:
        copy_lines(standard_input, Path(sys.argv[1]), sys.argv[2:])
