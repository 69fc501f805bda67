"""Tar files, written with the same bytes for the same content and read without trust.

Nothing is ever extracted: reading gives names and where the bytes lie. Links, devices, sparse files
and names that lead out of the archive come out with the problem that they have, and a header that
does not add up is an error, not the end of the archive (where the standard library stops reading
without a word).
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
"""Of the files that are images. Said here, for plans read it, and load no numpy."""
BLOCK = 512
END = bytes(2 * BLOCK)
"""What closes an archive."""
LONGEST_EXTENSION = 1 << 20  # bytes of a long name or of PAX records: names need no more
_LOOK = 1 << 20  # bytes behind the end that are looked at together
_REGULAR = (b"\x00", b"0", b"7")
_FOLDER = b"5"
_EXTENDING = (b"x", b"g", b"L", b"K")
_KINDS = {
    **{b"1": "a hard link", b"2": "a symbolic link", b"S": "a sparse file"},
    **{b"3": "a device", b"4": "a device", b"6": "a pipe"},
}


class BrokenTar(ValueError):
    """The archive cannot be read on: it is damaged, or cut short."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive."""

    name: str
    offset: int
    """Where its content begins."""
    size: int
    """Bytes of its content."""
    header: int
    """Where its first header begins."""
    problem: str = ""
    """Why its content must not be used; empty for a regular file of a harmless name."""


def encoded(name: str, content: bytes) -> bytes:
    """A member: header, content, padding. It has no time, owner or host; `name` is ASCII of at most
    100 characters."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK)


def encoded_size(size: int) -> int:
    """Bytes that content of that size takes in an archive, its header included."""
    return BLOCK + size + -size % BLOCK


def member_at(blocks: bytes, at: int) -> tuple[str, int]:
    """Name and size of a member of ours whose header begins at `blocks[at]`.

    Raises:
        BrokenTar: there is no header of a regular file.
    """
    header = _Header(blocks[at : at + BLOCK], at)
    if header.kind not in _REGULAR:
        raise BrokenTar(f"no file begins at byte {at}")
    return header.name, header.size


def members(descriptor: int, start: int = 0, end: int | None = None) -> Iterator[Member]:
    """The files of an archive in order, folders left out; those whose headers begin before `end`.

    Raises:
        BrokenTar: a header is damaged, or the archive is cut short.
    """
    length = os.fstat(descriptor).st_size
    at, first, told = start, start, _Extensions()
    while end is None or first < end:
        block = os.pread(descriptor, BLOCK, at)
        if len(block) == BLOCK and not any(block):
            return _end(descriptor, at)
        header = _Header(block, at)
        content, size = at + BLOCK, told.size if told.size is not None else header.size
        at = content + size + -size % BLOCK
        if content + size > length:
            raise BrokenTar(f"cut short: byte {content + size} of {length} is missing")
        if header.kind in _EXTENDING:
            told.read(header.kind, os.pread(descriptor, _bounded(size, content), content))
            continue
        if header.kind != _FOLDER:
            name = told.name or header.name
            problem = told.problem or _problem(header.kind, name)
            yield Member(name, content, size, first, problem)
        first, told = at, _Extensions()


def _end(descriptor: int, at: int) -> None:
    """See that an end mark is the end: behind it there are zeros alone.

    Raises:
        BrokenTar: there is more, as in archives laid end to end, or behind a hole.
    """
    while block := os.pread(descriptor, _LOOK, at):
        if block.strip(b"\0"):
            raise BrokenTar(f"more follows the end mark before byte {at + len(block)}")
        at += len(block)


@dataclass(slots=True)
class Group:
    """Neighbours in an archive whose names are the same up to the first dot of the last part: a
    sample of WebDataset. A member that has a problem is a group of its own."""

    key: str
    header: int
    """Where it begins."""
    members: dict[str, Member] = field(default_factory=dict)
    """By what follows the dot, in lower case."""
    problem: str = ""

    def first(self, suffixes: Iterable[str]) -> Member | None:
        """The member with the first of the suffixes that there is one with."""
        return next((self.members[name] for name in suffixes if name in self.members), None)


def groups(found: Iterable[Member]) -> Iterator[Group]:
    """The samples of an archive in order; what has no suffix belongs to none. Where the archive
    breaks off, the last one is a problem: more of it may have followed.

    Raises:
        BrokenTar: as `members`.
    """
    current: Group | None = None
    problems: list[Group] = []
    try:
        for member in found:
            key, suffix = _key_and_suffix(member.name)
            if suffix and current is not None and current.key != key:
                yield current
                yield from problems
                current, problems = None, []
            twice = current is not None and suffix in current.members
            problem = member.problem or ("a second file of that name" if twice else "")
            if problem:
                problems.append(Group(member.name, member.header, problem=problem))
            elif suffix:
                current = current or Group(key, member.header)
                current.members[suffix] = member
            if current is None:
                yield from problems
                problems = []
    except BrokenTar:
        if current is not None:
            yield Group(current.key, current.header, problem="the archive breaks off in it")
        yield from problems
        raise
    if current is not None:
        yield current
    yield from problems


def _key_and_suffix(name: str) -> tuple[str, str]:
    """`a/b.c.jpg` is `a/b` and `c.jpg`; a name that begins with a dot or has none has no suffix."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower() if stem else ""


def _problem(kind: bytes, name: str) -> str:
    if kind not in _REGULAR:
        return _KINDS.get(kind, "of an unknown type")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
        return "a name that leads elsewhere"
    return ""


def _bounded(size: int, at: int) -> int:
    if size > LONGEST_EXTENSION:
        raise BrokenTar(f"a name of {size} bytes before byte {at}")
    return size


class _Header:
    """The fields of a header block that matter.

    Raises:
        BrokenTar: the block is cut short, or its checksum is not that of its bytes.
    """

    def __init__(self, block: bytes, at: int) -> None:
        if len(block) < BLOCK:
            raise BrokenTar(f"cut short: no end mark at byte {at}")
        total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        if _number(block[148:156], at) != total:
            raise BrokenTar(f"damaged header at byte {at}")
        self.kind = block[156:157]
        self.size = _number(block[124:136], at) if self._sized else 0
        prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
        self.name = f"{prefix}/{_text(block[:100])}" if prefix else _text(block[:100])

    @property
    def _sized(self) -> bool:
        """Links, devices, pipes and folders have no content, whatever their headers say."""
        return self.kind == b"S" or self.kind not in (*_KINDS, _FOLDER)


class _Extensions:
    """What PAX records and GNU long names tell of the next file."""

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
    """The records `LENGTH KEY=VALUE\\n`."""
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
        raise BrokenTar(f"{text[:20]!r} is no number of bytes")
    return int(text)


def _number(field: bytes, at: int) -> int:
    """Octal digits, or GNU's big-endian form for what these cannot hold."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.rstrip(b"\0 ").lstrip(b" ").partition(b"\0")[0] or b"0"
    if digits.strip(b"01234567"):
        raise BrokenTar(f"damaged header at byte {at}")
    return int(digits, 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")
