"""Sources to records: an image's bytes with its captions and metadata, as they were found.

A record that cannot be used comes out marked as broken: it is counted and kept aside, and stops
nothing. A file that is damaged or cut short gives what it held up to there, then `BrokenFile`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from stages.data import tar_format
from stages.images.image_sources import Piece, file_digest, unreadable, whole_files
from stages.images.manifests import BrokenFile, Columns, rows

LARGEST_IMAGE = 1 << 28  # bytes of a file
LARGEST_TEXT = 1 << 22


@dataclass(frozen=True, slots=True)
class Record:
    """An image with captions as it was found."""

    key: str
    """What the source calls it."""
    place: str
    """Where it was: a file, and a row in it."""
    image: bytes = b""
    captions: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    broken: str = ""
    """Why it cannot be used, as `broken.KIND`; empty if it can."""
    error: str = ""
    """The same in words."""


class _BrokenRecord(ValueError):
    """A record cannot be used: the rule, and the reason in words."""

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(reason)
        self.rule = rule


def read(piece: Piece, columns: Columns) -> Iterator[Record]:
    """The records of a piece in order.

    Raises:
        BrokenFile: the file is damaged or cut short.
        InputError: it cannot be opened, or lacks a column.
    """
    reader = {"folder": _folder, "tar": _tar}.get(piece.kind, _manifest)
    try:
        yield from reader(piece, columns)
    except OSError as error:
        raise unreadable(piece.path, error) from error


def content_digest(source: str, columns: Columns) -> str:
    """What identifies the content of a source, wherever it lies: of manifests that of the images
    that they name, too.

    Raises:
        InputError: the source does not exist, holds nothing of a known type, or lacks a column.
    """
    state = xxhash.xxh3_128()
    for piece in whole_files([source]):
        try:
            digest = file_digest(Path(piece.path)) if piece.place else ""
        except OSError as error:
            raise unreadable(piece.path, error) from error
        state.update(f"{piece.source}\0{piece.place}\0{digest}\n".encode("utf-8", "surrogatepass"))
        for name, path in _named_files(piece, columns):
            line = f"{name}\0{_digest_or_reason(_root(piece, columns), path)}\n"
            state.update(line.encode("utf-8", "surrogatepass"))
    return state.hexdigest()


def _named_files(piece: Piece, columns: Columns) -> Iterator[tuple[str, Path]]:
    """The files beside a source's own that its records are made from."""
    root = _root(piece, columns)
    if piece.kind == "folder":
        for name in piece.names:
            path = root / name
            for beside in (path, path.with_suffix(".txt"), path.with_suffix(".json")):
                yield f"{name}{beside.suffix}", beside
    elif piece.kind != "tar":
        with suppress(BrokenFile):  # the bytes of the file itself are in the digest
            for _, row, found in rows(piece, columns):
                named = _named(row.get(found.image or ""))
                if isinstance(named, str):
                    yield named, Path(root, named)


def _digest_or_reason(root: Path, path: Path) -> str:
    """What identifies the content of a file, or why it has none: that stops no plan."""
    try:
        real = _inside(root, path)
        return file_digest(real) if stat.S_ISREG(real.stat().st_mode) else "not a file"
    except _BrokenRecord as error:
        return error.rule
    except OSError as error:
        return str(error.strerror)


def _root(piece: Piece, columns: Columns) -> Path:
    """The folder that nothing may lead out of."""
    if piece.kind == "folder":
        return Path(piece.path)
    return Path(columns.root).expanduser() if columns.root else Path(piece.path).parent


def _folder(piece: Piece, columns: Columns) -> Iterator[Record]:
    root = Path(piece.path)
    for name in piece.names:
        key = name.rpartition(".")[0]
        path = root / name
        try:
            image = _bytes(root, path, LARGEST_IMAGE)
            meta, told = _told(_beside(root, path.with_suffix(".json")), columns)
            captions = (*_lines(_beside(root, path.with_suffix(".txt"))), *told)
            yield Record(key, name, image, captions, meta)
        except _BrokenRecord as error:
            yield _broken(key, name, error)


def _beside(root: Path, path: Path) -> bytes:
    """A side-car file; empty if there is none."""
    return _bytes(root, path, LARGEST_TEXT) if os.path.lexists(path) else b""


def _tar(piece: Piece, columns: Columns) -> Iterator[Record]:
    with Path(piece.path).open("rb") as stream:
        descriptor = stream.fileno()
        try:
            for group in tar_format.groups(tar_format.members(descriptor, piece.start, piece.end)):
                yield _of_group(group, descriptor, piece, columns)
        except tar_format.BrokenTar as error:
            raise BrokenFile(f"damaged archive: {error}", where=piece.path) from error


def _of_group(group: tar_format.Group, descriptor: int, piece: Piece, columns: Columns) -> Record:
    place = f"{piece.place}/{group.key}"
    try:
        if group.problem:
            raise _BrokenRecord("broken.member", group.problem)
        image = _member(group.first(tar_format.IMAGE_SUFFIXES), descriptor, LARGEST_IMAGE)
        if not image:
            raise _BrokenRecord("broken.image", "no image")
        text = _member(group.members.get("txt"), descriptor, LARGEST_TEXT)
        meta, told = _told(_member(group.members.get("json"), descriptor, LARGEST_TEXT), columns)
        return Record(group.key, place, image, (*_lines(text), *told), meta)
    except _BrokenRecord as error:
        return _broken(group.key, place, error)


def _member(member: tar_format.Member | None, descriptor: int, most: int) -> bytes:
    if member is None:
        return b""
    if member.size > most:
        raise _BrokenRecord("broken.size", f"{member.name} has {member.size} bytes")
    return os.pread(descriptor, member.size, member.offset)


def _lines(data: bytes) -> list[str]:
    """The captions of a text file."""
    try:
        return data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise _BrokenRecord("broken.caption", f"not UTF-8: {error.reason}") from error


def _told(data: bytes, columns: Columns) -> tuple[dict[str, Any], list[str]]:
    """Metadata of a JSON file, and the captions in it."""
    if not data:
        return {}, []
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _BrokenRecord("broken.json", str(error)[:200]) from error
    if not isinstance(found, dict):
        raise _BrokenRecord("broken.json", "not an object")
    names = columns.captions or ("captions",)
    captions = [text for name in names if name in found for text in _texts(found.pop(name))]
    return found, captions


def _texts(value: object) -> list[str]:
    """A caption, or a list of some."""
    if isinstance(value, str):
        return [value]
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _manifest(piece: Piece, columns: Columns) -> Iterator[Record]:
    root = _root(piece, columns)
    for number, row, found in rows(piece, columns):
        place = f"{piece.place}, record {number + 1}"
        key = str(number)
        try:
            if row.get(None):
                raise _BrokenRecord("broken.columns", row[None])
            named = _named(row.get(found.image or ""))
            if isinstance(named, str) and Path(named).name:
                key = str(Path(named).with_suffix(""))
            image = _image_of(named, root)
            captions = tuple(text for name in found.captions for text in _texts(row.get(name)))
            meta = {name: row[name] for name in found.meta if row.get(name) is not None}
            yield Record(key, place, image, captions, json.loads(json.dumps(meta, default=str)))
        except _BrokenRecord as error:
            yield _broken(key, place, error)


def _named(value: object) -> object:
    """What a row says of its image: a path, bytes, or something else."""
    if isinstance(value, dict):  # the feature `Image` of Hugging Face's datasets
        return value.get("bytes") or value.get("path")
    return value


def _image_of(value: object, root: Path) -> bytes:
    """The bytes of an image that a row names or holds."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise _BrokenRecord("broken.columns", "no path of an image")
    return _bytes(root, Path(root, value), LARGEST_IMAGE)


def _broken(key: str, place: str, error: _BrokenRecord) -> Record:
    return Record(key, place, broken=error.rule, error=str(error))


def _inside(root: Path, path: Path) -> Path:
    """The path, if it leads to what is below the root."""
    try:
        real = path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a loop of links
        raise _BrokenRecord("broken.path", f"no path: {error}") from error
    if not real.is_relative_to(root.resolve()):
        raise _BrokenRecord("broken.path", "leads out of the source's folder")
    return real


def _bytes(root: Path, path: Path, most: int) -> bytes:
    """The content of a regular file below the root."""
    real = _inside(root, path)
    try:
        status = real.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise _BrokenRecord("broken.path", "not a file")
        if status.st_size > most:
            raise _BrokenRecord("broken.size", f"{status.st_size} bytes")
        return real.read_bytes()
    except OSError as error:
        raise _BrokenRecord("broken.image", f"{error.strerror}: {path.name}") from error
