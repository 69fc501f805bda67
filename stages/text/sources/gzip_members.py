"""Gzip files that are damaged: what precedes the damage is read, and the members behind it.

Archives of crawlers hold one member per record (ISO 28500:2017, annex A), so that damage costs the
records that it touches, not the rest of the file.
"""

from __future__ import annotations

import io
import zlib
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_CHUNK = 1 << 14  # compressed bytes: decompressed once more where the damage is
_MEMBER = b"\x1f\x8b\x08"
_GZIP = 31  # window bits of zlib for a gzip header


class GzipMembers(io.RawIOBase):
    """Decompressed content of a gzip file; its damage is raised at the end of the file.

    Raises:
        zlib.error: at the end, if a member was damaged.
        EOFError: at the end, if the last member is truncated.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._input = b""
        self._output = memoryview(b"")
        self._member: zlib._Decompress | None = None
        self._error: Exception | None = None

    def readable(self) -> bool:
        """Return true: this is a stream to read."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read decompressed bytes into a buffer; return their number, 0 at the end."""
        while not self._output:
            self._input = self._input or self._stream.read(_CHUNK)
            if not self._input:
                self._raise_at_end()
                return 0
            self._output = memoryview(self._decompress())
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._output))
        target[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _raise_at_end(self) -> None:
        if self._error is None and self._member is not None:
            self._error = EOFError("Compressed file ended before the end-of-stream marker")
        if self._error is not None:
            raise self._error

    def _decompress(self) -> bytes:
        """Return what the next input decompresses to, and drop that from the input."""
        if self._member is None:
            self._input = self._input.lstrip(b"\0")  # padding between members
            if not self._input:
                return b""
            self._member = zlib.decompressobj(_GZIP)
        before = self._member.copy()
        try:
            data = self._member.decompress(self._input)
        except zlib.error as error:
            self._error = self._error or error
            return self._data_before_damage(before)
        self._input = self._member.unused_data
        if self._member.eof:
            self._member = None
        return data

    def _data_before_damage(self, member: zlib._Decompress) -> bytes:
        """Return what precedes the damage in the input, and continue at the next member."""
        found = bytearray()
        for at in range(len(self._input)):
            try:
                found += member.decompress(self._input[at : at + 1])
            except zlib.error:
                break
        self._find_member(at)
        return bytes(found)

    def _find_member(self, start: int) -> None:
        self._member = None
        rest = self._input[start:]
        while (at := rest.find(_MEMBER)) < 0:
            chunk = self._stream.read(_CHUNK)
            if not chunk:
                rest = b""
                break
            rest = rest[-len(_MEMBER) + 1 :] + chunk
        self._input = rest[max(at, 0) :]
