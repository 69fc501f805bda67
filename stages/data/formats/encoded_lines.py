"""Lines of a file in any encoding, as UTF-8 or as text.

Lines in UTF-8 pass unchanged. The encoding is decided at the first line outside ASCII, from it and
the lines behind it, for the whole file: a later line that is not in it is damaged. In an encoding
of single bytes, which hardly excludes any line, a line that is valid UTF-8 is UTF-8: files are
joined from others.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from contextlib import suppress

from stages.data.formats.text_encoding import (
    UTF8_BOM,
    WINDOW,
    display_name,
    inner_encoding,
    leading_encoding,
)

_MARK = 0xDC00
"""First of the 256 code points that stand for bytes without meaning, as in PEP 383."""
_MARKED = re.compile("[\udc00-\udcff]")
_ERRORS = "headwater.mark"
_SINGLE_BYTE = ("cp125", "cp866", "iso8859", "koi8")  # beginnings of the names of such codecs


def _mark_bytes(error: UnicodeError) -> tuple[str, int]:
    """Return marks for bytes without meaning; three bytes may be a mark already, as UTF-8."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    with suppress(UnicodeDecodeError):
        mark = error.object[error.start : error.start + 3].decode("utf-8", "surrogatepass")
        if _MARKED.fullmatch(mark):
            return mark, error.start + 3
    bad = error.object[error.start : error.end]
    return "".join(chr(_MARK + byte) for byte in bad), error.end


codecs.register_error(_ERRORS, _mark_bytes)


class EncodedLines:
    """The lines of a file, or of a part of it, as UTF-8, each with its line end.

    The bytes without meaning of a damaged line are marked, so that it is not valid UTF-8, and
    `reason` and `readable` describe it.
    """

    encoding: str
    """Python codec of the file; empty until a line outside ASCII is read."""
    bytes_read: int
    """Position in the file behind the last line."""
    damaged = False
    """True as soon as a line was read as text that cannot be decoded."""

    def __init__(
        self,
        stream: io.BufferedReader,
        encoding: str = "",
        *,
        start: int = 0,
        end: int | None = None,
    ) -> None:
        """
        Args:
            stream: the file, decompressed.
            encoding: codec that an earlier pass over the file found; empty to find it.
            start: first byte, at the beginning of a line.
            end: end of the bytes, exclusive, after a line; None reads to the end of the file.
        """
        if start:
            stream.seek(start)
        self._stream = stream
        self._end = end
        self.bytes_read = start
        head = b"" if encoding or start else stream.peek(WINDOW)
        self.encoding = encoding or leading_encoding(head)
        if not self.encoding and b"\x1b" in head:  # ISO 2022 is in ASCII
            self.encoding = inner_encoding(head, whole=False)

    def __iter__(self) -> Iterator[bytes]:
        for line in self._stored_lines():
            if self.encoding in ("", "utf-8"):
                yield line.removeprefix(UTF8_BOM)
            else:
                yield self._decode(line).encode("utf-8", "surrogatepass")

    def decoded(self) -> Iterator[str]:
        """Yield the lines as text, also those that end with a carriage return, as in csv."""
        for stored in self._stored_lines():
            line = self._decode(stored)
            if "\r" in line[:-2]:
                yield from io.StringIO(line, newline="")
            else:
                yield line

    def reason(self, line: bytes | str) -> str:
        """Return why a line, or a field of it, cannot be decoded; empty if it can."""
        mark = _MARKED.search(_marked_text(line))
        if mark is None:
            return ""
        byte = ord(mark[0]) - _MARK
        return f"byte 0x{byte:02x} at character {mark.start()} is not {display_name(self.encoding)}"

    def _decode(self, line: bytes) -> str:
        codec = self.encoding or "utf-8"
        if codec.startswith(_SINGLE_BYTE):
            with suppress(UnicodeDecodeError):
                return line.decode().removeprefix("\ufeff")
        try:
            return line.decode(codec).removeprefix("\ufeff")
        except UnicodeDecodeError:
            self.damaged = True
            return line.decode(codec, _ERRORS).removeprefix("\ufeff")

    def _stored_lines(self) -> Iterator[bytes]:
        """Yield the lines as they are stored."""
        lines = self._undecided_lines() if not self.encoding else self._lines()
        for line in lines:
            self.bytes_read += len(line)
            yield line
            if self._end is not None and self.bytes_read >= self._end:
                return

    def _undecided_lines(self) -> Iterator[bytes]:
        """Yield lines in ASCII, then decide the encoding and yield the others."""
        for line in self._stream:
            if not line.isascii():
                window, error = self._window(line)
                self.encoding = inner_encoding(b"".join(window), whole=False)
                yield from window
                if error is not None:
                    raise error
                yield from self._stream
                return
            yield line

    def _window(self, line: bytes) -> tuple[list[bytes], Exception | None]:
        """Return a line and those behind it, and the error of the stream that ended them."""
        window, size = [line], len(line)
        try:
            while size < WINDOW and (more := self._stream.readline()):
                window.append(more)
                size += len(more)
        except Exception as error:  # of any decompressor
            return window, error
        return window, None

    def _lines(self) -> Iterator[bytes]:
        """Return the lines in a known encoding, whose line end may have several bytes."""
        end = "\n".encode(self.encoding)
        if len(end) == 1:
            return iter(self._stream)
        return self._wide_lines(end)

    def _wide_lines(self, end: bytes) -> Iterator[bytes]:
        line = bytearray()
        while more := self._stream.readline():
            line += more
            line += self._stream.read(-len(line) % len(end))
            if line.endswith(end):
                yield bytes(line)
                line.clear()
        if line:
            yield bytes(line)


def readable(line: bytes | str) -> str:
    """Return a line of `EncodedLines` as text, bytes without meaning as `\\xNN`."""
    return _MARKED.sub(lambda mark: f"\\x{ord(mark[0]) - _MARK:02x}", _marked_text(line))


def _marked_text(line: bytes | str) -> str:
    return line if isinstance(line, str) else line.decode("utf-8", _ERRORS)
