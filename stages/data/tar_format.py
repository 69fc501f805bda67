"""Tar files: deterministic writing, and reading of untrusted archives.

Nothing is extracted: reading yields names and offsets. Links, devices, sparse files and names that
leave the archive are returned with their problem. A header with a wrong checksum is an error,
whereas the standard library takes it silently for the end of the archive; that is why the reader is
hand-written.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
"""Suffixes of image files; defined here because `headwater plan` imports them without numpy."""
BLOCK = 512
END = bytes(2 * BLOCK)
"""End mark of an archive."""
MAX_EXTENSION = 1 << 20  # bytes of a long name or of PAX records
_TAIL_BLOCK = 1 << 20  # bytes after the end mark that are checked at once
_REGULAR = (b"\x00", b"0", b"7")
_FOLDER = b"5"
_EXTENDING = (b"x", b"g", b"L", b"K")
_KINDS = {
    **{b"1": "a hard link", b"2": "a symbolic link", b"S": "a sparse file"},
    **{b"3": "a device", b"4": "a device", b"6": "a pipe"},
}


class BrokenTar(ValueError):
    """An archive that cannot be read any further: it is damaged or truncated."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file of an archive."""

    name: str
    offset: int
    """Offset of its content, bytes."""
    size: int
    """Size of its content, bytes."""
    header: int
    """Offset of its first header, bytes."""
    problem: str = ""
    """Reason why its content must not be used; empty for a regular file with a safe name."""


def encode_member(name: str, content: bytes) -> bytes:
    """Return header, content and padding of a member without time, owner or host.

    Args:
        name: at most 100 ASCII characters.
        content: the file's bytes.
    """
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK)


def member_size(size: int) -> int:
    """Return the bytes that content of a size takes in an archive, including its header."""
    return BLOCK + size + -size % BLOCK


def parse_member(blocks: bytes, at: int) -> tuple[str, int]:
    """Return name and size of the regular file whose header begins at `blocks[at]`.

    Raises:
        BrokenTar: there is no header of a regular file.
    """
    header = _Header(blocks[at : at + BLOCK], at)
    if header.kind not in _REGULAR:
        raise BrokenTar(f"no file begins at byte {at}")
    return header.name, header.size


def read_members(descriptor: int, start: int = 0, end: int | None = None) -> Iterator[TarMember]:
    """Yield the files (not folders) whose headers begin in bytes `start` to `end`, in order.

    Raises:
        BrokenTar: a header is damaged, or the archive is truncated.
    """
    length = os.fstat(descriptor).st_size
    at, first, extensions = start, start, _Extensions()
    while end is None or first < end:
        block = os.pread(descriptor, BLOCK, at)
        if len(block) == BLOCK and not any(block):
            return _check_end(descriptor, at)
        header = _Header(block, at)
        content = at + BLOCK
        size = header.size if extensions.size is None else extensions.size
        at = content + size + -size % BLOCK
        if content + size > length:
            raise BrokenTar(f"truncated: {length} bytes, but a file ends at byte {content + size}")
        if header.kind in _EXTENDING:
            extensions.read(
                header.kind, os.pread(descriptor, _checked_extension_size(size, content), content)
            )
            continue
        if header.kind != _FOLDER:
            name = extensions.name or header.name
            problem = extensions.problem or _problem(header.kind, name)
            yield TarMember(name, content, size, first, problem)
        first, extensions = at, _Extensions()


def _check_end(descriptor: int, at: int) -> None:
    """Check that only zeros follow an end mark.

    Raises:
        BrokenTar: there is more, as in concatenated archives, or after a hole.
    """
    while block := os.pread(descriptor, _TAIL_BLOCK, at):
        if block.strip(b"\0"):
            raise BrokenTar(f"more follows the end mark before byte {at + len(block)}")
        at += len(block)


@dataclass(slots=True)
class SampleGroup:
    """A WebDataset sample: adjacent members with the same name up to the first dot of the last
    part. A member with a problem is a group of its own."""

    key: str
    header: int
    """Offset of its first header, bytes."""
    members: dict[str, TarMember] = field(default_factory=dict)
    """Members by what follows the dot, in lower case."""
    problem: str = ""

    def first(self, suffixes: Iterable[str]) -> TarMember | None:
        """Return the member of the first suffix that the sample has, or None."""
        return next((self.members[name] for name in suffixes if name in self.members), None)


def sample_groups(members: Iterable[TarMember]) -> Iterator[SampleGroup]:
    """Yield the samples of an archive in order; members without a suffix are skipped.

    The last sample of a truncated archive has a problem, because members of it may be missing.

    Raises:
        BrokenTar: as `read_members`.
    """
    current: SampleGroup | None = None
    problems: list[SampleGroup] = []
    try:
        for member in members:
            key, suffix = _key_and_suffix(member.name)
            if suffix and current is not None and current.key != key:
                yield current
                yield from problems
                current, problems = None, []
            repeated = current is not None and suffix in current.members
            problem = member.problem or ("a second file with that name" if repeated else "")
            if problem:
                problems.append(SampleGroup(member.name, member.header, problem=problem))
            elif suffix:
                current = current or SampleGroup(key, member.header)
                current.members[suffix] = member
            if current is None:
                yield from problems
                problems = []
    except BrokenTar:
        if current is not None:
            yield SampleGroup(
                current.key, current.header, problem="the archive is truncated within it"
            )
        yield from problems
        raise
    if current is not None:
        yield current
    yield from problems


def _key_and_suffix(name: str) -> tuple[str, str]:
    """Split `a/b.c.jpg` into `a/b` and `c.jpg`; a leading dot does not begin a suffix."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower() if stem else ""


def _problem(kind: bytes, name: str) -> str:
    if kind not in _REGULAR:
        return _KINDS.get(kind, "a file of an unknown type")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
        return "a name that leaves the archive"
    return ""


def _checked_extension_size(size: int, at: int) -> int:
    if size > MAX_EXTENSION:
        raise BrokenTar(f"a name of {size} bytes before byte {at}")
    return size


class _Header:
    """Type, name and size in a header block.

    Raises:
        BrokenTar: the block is truncated, or its checksum is wrong.
    """

    def __init__(self, block: bytes, at: int) -> None:
        if len(block) < BLOCK:
            raise BrokenTar(f"truncated: no end mark at byte {at}")
        total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        if _number(block[148:156], at) != total:
            raise BrokenTar(f"damaged header at byte {at}")
        self.kind = block[156:157]
        self.size = _number(block[124:136], at) if self._has_content else 0
        prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
        self.name = f"{prefix}/{_text(block[:100])}" if prefix else _text(block[:100])

    @property
    def _has_content(self) -> bool:
        """Return false for links, devices, pipes and folders, whose size field means nothing."""
        return self.kind == b"S" or self.kind not in (*_KINDS, _FOLDER)


class _Extensions:
    """Name, size and problem of the next file in PAX records and GNU long names."""

    def __init__(self) -> None:
        self.name = ""
        self.size: int | None = None
        self.problem = ""

    def read(self, kind: bytes, content: bytes) -> None:
        if kind == b"L":
            self.name = _text(content)
        elif kind == b"x":
            for key, value in _pax_records(content):
                if key == "path":
                    self.name = value
                elif key == "size":
                    self.size = _decimal(value)
                elif key.startswith("GNU.sparse."):
                    self.problem = _KINDS[b"S"]


def _pax_records(content: bytes) -> Iterator[tuple[str, str]]:
    """Yield key and value of the records `LENGTH KEY=VALUE\\n`."""
    at = 0
    while at < len(content) and content[at]:
        length = content[at : at + 20].partition(b" ")[0]
        record = content[at : at + _decimal(length.decode("ascii", "replace"))]
        key, equals, value = record[len(length) + 1 : -1].partition(b"=")
        if not equals or not record.endswith(b"\n"):
            raise BrokenTar("damaged PAX records")
        yield key.decode("utf-8", "replace"), value.decode("utf-8", "surrogateescape")
        at += len(record)


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BrokenTar(f"{text[:20]!r} is not a number of bytes")
    return int(text)


def _number(field: bytes, at: int) -> int:
    """Parse octal digits, or GNU's big-endian form of larger numbers."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.rstrip(b"\0 ").lstrip(b" ").partition(b"\0")[0] or b"0"
    if digits.strip(b"01234567"):
        raise BrokenTar(f"damaged header at byte {at}")
    return int(digits, 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")
