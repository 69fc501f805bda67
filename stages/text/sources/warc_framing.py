"""Boundaries of the records in a WARC archive, also where a length is false.

A record states its length in bytes, and the next one follows. If none follows there, the length is
false (a crawler measured another encoding, or the archive is damaged): that record is broken, and
reading goes on at the next header (ISO 28500:2017, section 4).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader

MAX_CONTENT = 32 << 20
"""Maximum size of a record, bytes; larger ones are not pages."""
_CHUNK = 1 << 20
_MAX_HEADER = 1 << 16
_HEADER_START = re.compile(rb"WARC/\d\.\d{1,2}\r?\n(?=[A-Za-z][\w-]*:)")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile(rb"^content-length:[ \t]*(\d{1,15})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_BREAKS = re.compile(rb"[\r\n]*")
_LOOKAHEAD = 64  # bytes behind a record: line breaks and the start of a header


@dataclass(frozen=True, slots=True)
class WarcFrame:
    """A record as stored."""

    offset: int
    """Position of its header in the decompressed archive, bytes."""
    header: bytes
    content: bytes
    problem: str = ""
    """Reason why the content is missing; empty for a whole record."""


def read_frames(stream: BufferedReader) -> Iterator[WarcFrame]:
    """Yield the records of an archive in order.

    Args:
        stream: the archive, decompressed.

    Raises:
        OSError: it is not an archive, or is truncated; or as the stream raises.
    """
    window, frames = _Window(stream), 0
    while True:
        window.skip(_BREAKS)
        if not window.fill(1):
            break
        start = window.offset
        frame = _next_frame(window)
        if frame is None:
            raise window.error or OSError(f"the record at {start} is truncated")
        if not frames and not window.fill(1) and not frame.header:
            break
        yield frame
        frames += 1
    if window.error:
        raise window.error
    if not frames:
        raise OSError("it contains no WARC record")


def _next_frame(window: _Window) -> WarcFrame | None:
    """Return the record at the start of the window and move behind it; None if it is truncated."""
    offset = window.offset
    window.fill(_MAX_HEADER)
    start, end = _HEADER_START.match(window.data), _HEADER_END.search(window.data)
    if start is None or end is None or end.end() > _MAX_HEADER:
        window.find_header(1)
        return WarcFrame(offset, b"", b"", "no header where a record must begin")
    header = bytes(window.data[: end.end()])
    length = _LENGTH.search(header)
    if length is None:
        window.find_header(len(header))
        return WarcFrame(offset, header, b"", "its header has no Content-Length")
    size = len(header) + int(length[1])
    if int(length[1]) > MAX_CONTENT:
        return _pass_over(window, header, size)
    whole = window.fill(size + _LOOKAHEAD) >= size
    if whole and (window.is_boundary(size) or _ends_with_blank_line(window, len(header), size)):
        content = bytes(window.data[len(header) : size])
        window.drop(size)
        return WarcFrame(offset, header, content)
    if window.find_header(len(header)) or whole:
        return WarcFrame(offset, header, b"", "its Content-Length is false")
    return None


def _ends_with_blank_line(window: _Window, start: int, end: int) -> bool:
    """Return whether a record that the next header does not follow, because that is damaged, ends
    at this position nonetheless."""
    blank = window.data.startswith(b"\r\n\r\n", end)
    return blank and not _HEADER_START.search(window.data, start, end)


def _pass_over(window: _Window, header: bytes, size: int) -> WarcFrame | None:
    """Move behind a record that is too large, or whose length is false by far."""
    offset = window.offset
    window.fill(MAX_CONTENT)
    if _HEADER_START.search(window.data, len(header)):
        window.find_header(len(header))
        return WarcFrame(offset, header, b"", "its Content-Length is false")
    if not window.pass_over(size):
        return None
    if not window.is_boundary(0):
        window.find_header(0)
    return WarcFrame(offset, header, b"", f"it is larger than {MAX_CONTENT >> 20} MiB")


class _Window:
    """The bytes of a stream from some position on, as far as they were needed."""

    def __init__(self, stream: BufferedReader) -> None:
        self._stream = stream
        self.data = bytearray()
        self.offset = 0
        """Position of the data in the stream."""
        self.error: Exception | None = None
        """The error of the stream, to raise when all that precedes it was read."""
        self._ended = False

    def fill(self, size: int) -> int:
        """Read until there are so many bytes, or the stream ends; return how many there are."""
        while len(self.data) < size and not self._ended:
            try:
                chunk = self._stream.read1(_CHUNK)
            except Exception as error:  # of any decompressor
                self.error, chunk = error, b""
            self.data += chunk
            self._ended = not chunk
        return len(self.data)

    def drop(self, size: int) -> None:
        """Move forward within the data."""
        del self.data[:size]
        self.offset += size

    def skip(self, pattern: re.Pattern[bytes]) -> None:
        """Move behind all that matches a pattern."""
        while self.fill(_LOOKAHEAD) and (found := pattern.match(self.data)) and found.end():
            self.drop(found.end())

    def pass_over(self, size: int) -> bool:
        """Move forward by so many bytes; return false if the stream ends before."""
        end = self.offset + size
        while self.offset < end and self.fill(1):
            self.drop(min(len(self.data), end - self.offset))
        self.fill(_LOOKAHEAD)
        return self.offset == end

    def is_boundary(self, at: int) -> bool:
        """Return whether a record can end at a position of the data: a header or the end of the
        stream follows."""
        behind = _BREAKS.match(self.data, at)
        assert behind is not None
        return self.data.startswith(b"WARC/", behind.end()) or behind.end() == len(self.data)

    def find_header(self, start: int) -> bool:
        """Move to the next header that begins at `start` or behind it, else to the end of the
        stream; return whether there is one."""
        self.drop(min(start, len(self.data)))
        while not (found := _HEADER_START.search(self.data)):
            if self._ended:
                self.drop(len(self.data))
                return False
            self.drop(max(0, len(self.data) - _LOOKAHEAD))
            self.fill(len(self.data) + 1)
        self.drop(found.start())
        return True
