"""Reads sources as records: the bytes of an image with its captions and metadata.

A record that cannot be used is returned marked as broken, so that it is counted and listed without
stopping the stage. A damaged or truncated file yields its records up to the damage, then raises
`BrokenFile`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.curation.broken_files import BrokenFile
from stages.curation.content_digest import digest_rows, file_digest
from stages.data import tar_format
from stages.data.formats.json_values import as_json, parse_json
from stages.data.formats.surrogates import replace_surrogates
from stages.data.formats.text_encoding import UndecodableText, decode_text
from stages.images.columns import ImageColumns
from stages.images.image_sources import SIDECARS, ImagePiece, list_files, read_errors
from stages.images.manifests import ManifestRow, read_rows

MAX_IMAGE_BYTES = 1 << 28
MAX_TEXT_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image with captions as the source has it."""

    key: str
    """Name of the record in its source."""
    place: str
    """File of the record, and row in it."""
    image: bytes = b""
    captions: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    broken: str = ""
    """Rule `broken.KIND` if the record cannot be used, else empty."""
    error: str = ""
    """Reason in words."""
    image_name: str = ""
    """Name of the image in its source: the same for the rows of a manifest that name one image."""


class _BrokenRecord(ValueError):
    """A record that cannot be used: the rule, and the reason in words."""

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(reason)
        self.rule = rule


def read_records(piece: ImagePiece, columns: ImageColumns) -> Iterator[ImageRecord]:
    """Yield the records of a piece in order.

    Raises:
        BrokenFile: the file is damaged or truncated.
        InputError: the file cannot be opened, or lacks a column.
    """
    reader = {"folder": _read_folder, "tar": _read_tar}.get(piece.kind, _read_manifest)
    with read_errors(piece.path):
        yield from reader(piece, columns)


def content_digest(source: str, columns: ImageColumns) -> str:
    """Return the digest of a source's content, including the images that manifests name.

    Raises:
        InputError: the source does not exist, has no file of a known type, or lacks a column.
    """
    return digest_rows(_digested_rows(source, columns))


def _digested_rows(source: str, columns: ImageColumns) -> Iterator[tuple[str, ...]]:
    for piece in list_files([source]):
        with read_errors(piece.path):
            digest = file_digest(Path(piece.path)) if piece.place else ""
        yield piece.source, piece.place, digest
        for name, path in _referenced_files(piece, columns):
            yield name, _digest_or_reason(_root(piece, columns), path)


def _referenced_files(piece: ImagePiece, columns: ImageColumns) -> Iterator[tuple[str, Path]]:
    """Yield the files outside the piece's own that its records are made from."""
    root = _root(piece, columns)
    if piece.kind == "folder":
        for name in piece.names:
            path = root / name
            for file in (path, *(_sidecar(path, suffix) for suffix in SIDECARS)):
                yield f"{name}{file.suffix}", file
    elif piece.kind != "tar":
        with suppress(BrokenFile):  # the digest covers the bytes of the manifest itself
            for row in read_rows(piece, columns):
                value = _image_value(row.values.get(row.columns.image or ""))
                if isinstance(value, str):
                    yield value, Path(root, value)


def _digest_or_reason(root: Path, path: Path) -> str:
    """Return the digest of a file, or why it has none: a missing image does not stop a plan."""
    try:
        real = _resolve_inside(root, path)
        return file_digest(real) if stat.S_ISREG(real.stat().st_mode) else "not a file"
    except _BrokenRecord as error:
        return error.rule
    except OSError as error:
        return str(error.strerror)


def _root(piece: ImagePiece, columns: ImageColumns) -> Path:
    """Return the folder that no path of a piece may leave."""
    if piece.kind == "folder":
        return Path(piece.path)
    return Path(columns.root).expanduser() if columns.root else Path(piece.path).parent


def _read_folder(piece: ImagePiece, columns: ImageColumns) -> Iterator[ImageRecord]:
    root = Path(piece.path)
    for name in piece.names:
        key = name.rpartition(".")[0]
        path = root / name
        try:
            image = _read_bytes(root, path, MAX_IMAGE_BYTES)
            text, metadata = (_read_sidecar(root, _sidecar(path, suffix)) for suffix in SIDECARS)
            meta, listed = _parse_metadata(metadata, columns)
            lines = _caption_lines(text)
            yield ImageRecord(key, name, image, (*lines, *listed), meta, image_name=name)
        except _BrokenRecord as error:
            yield _broken(key, name, error)


def _sidecar(image: Path, suffix: str) -> Path:
    """Return the path of a file next to an image, whose suffix may be in capitals."""
    plain, capital = image.with_suffix(suffix), image.with_suffix(suffix.upper())
    return capital if os.path.lexists(capital) and not os.path.lexists(plain) else plain


def _read_sidecar(root: Path, path: Path) -> bytes:
    """Return the content of a file next to an image; empty if it does not exist."""
    return _read_bytes(root, path, MAX_TEXT_BYTES) if os.path.lexists(path) else b""


def _read_tar(piece: ImagePiece, columns: ImageColumns) -> Iterator[ImageRecord]:
    with Path(piece.path).open("rb") as stream:
        descriptor = stream.fileno()
        members = tar_format.read_members(descriptor, piece.start, piece.end)
        try:
            for group in tar_format.sample_groups(members):
                yield _group_record(group, descriptor, piece, columns)
        except tar_format.BrokenTar as error:
            raise BrokenFile(f"damaged archive: {error}", where=piece.path) from error


def _group_record(
    group: tar_format.SampleGroup, descriptor: int, piece: ImagePiece, columns: ImageColumns
) -> ImageRecord:
    place = f"{piece.place}/{group.key}"
    try:
        if group.problem:
            raise _BrokenRecord("broken.member", group.problem)
        image = _read_member(group.first(tar_format.IMAGE_SUFFIXES), descriptor, MAX_IMAGE_BYTES)
        if not image:
            others = ", ".join(sorted(group.members))
            raise _BrokenRecord("broken.image", f"no image (its files: {others})")
        text = _read_member(group.members.get("txt"), descriptor, MAX_TEXT_BYTES)
        encoded = _read_member(group.members.get("json"), descriptor, MAX_TEXT_BYTES)
        meta, listed = _parse_metadata(encoded, columns)
        captions = (*_caption_lines(text), *listed)
        return ImageRecord(group.key, place, image, captions, meta, image_name=place)
    except _BrokenRecord as error:
        return _broken(group.key, place, error)


def _read_member(member: tar_format.TarMember | None, descriptor: int, limit: int) -> bytes:
    if member is None:
        return b""
    if member.size > limit:
        raise _BrokenRecord("broken.size", f"{member.name} has {member.size} bytes")
    return os.pread(descriptor, member.size, member.offset)


def _caption_lines(data: bytes) -> list[str]:
    """Return the captions of a text file."""
    return _decoded(data).splitlines()


def _decoded(data: bytes) -> str:
    try:
        return decode_text(data)
    except UndecodableText as error:
        raise _BrokenRecord("broken.encoding", str(error)) from error


def _parse_metadata(data: bytes, columns: ImageColumns) -> tuple[dict[str, Any], list[str]]:
    """Return the metadata of a JSON file, and the captions that it holds."""
    if not data:
        return {}, []
    try:
        meta = as_json(parse_json(_decoded(data)))
    except (ValueError, RecursionError) as error:
        if isinstance(error, _BrokenRecord):
            raise
        raise _BrokenRecord("broken.json", str(error)[:200]) from error
    if not isinstance(meta, dict):
        raise _BrokenRecord("broken.json", "not an object")
    names = columns.captions or ("captions",)
    captions = [text for name in names if name in meta for text in _texts(meta.pop(name))]
    return meta, captions


def _texts(value: object) -> list[str]:
    """Return the texts of a caption field: a text, or a list of texts; bytes are UTF-8."""
    if isinstance(value, list):
        return [text for item in value if not isinstance(item, list) for text in _texts(item)]
    if isinstance(value, bytes):
        try:
            return [value.decode()]
        except UnicodeDecodeError as error:
            raise _BrokenRecord("broken.encoding", str(error)) from error
    return [replace_surrogates(value)] if isinstance(value, str) else []


def _read_manifest(piece: ImagePiece, columns: ImageColumns) -> Iterator[ImageRecord]:
    root = _root(piece, columns)
    for row in read_rows(piece, columns):
        place = f"{piece.place}, record {row.number + 1}"
        key = str(row.number)
        try:
            if row.broken:
                raise _BrokenRecord(row.broken, row.error)
            value = _image_value(row.values.get(row.columns.image or ""))
            named = isinstance(value, str) and Path(value).name
            if named:
                key = str(Path(str(value)).with_suffix(""))
            image = _image_bytes(value, root)
            captions = tuple(
                text for name in row.columns.captions for text in _texts(row.values.get(name))
            )
            meta = _manifest_metadata(row)
            name = str(value) if named else "in the manifest"
            yield ImageRecord(key, place, image, captions, meta, image_name=name)
        except _BrokenRecord as error:
            yield _broken(key, place, error)


def _manifest_metadata(row: ManifestRow) -> dict[str, Any]:
    """Return the metadata of a row, as JSON can hold it."""
    kept = {name: row.values.get(name) for name in row.columns.meta}
    try:
        found = {name: as_json(value) for name, value in kept.items()}
    except ValueError as error:
        rule = "broken.encoding" if isinstance(error, UnicodeDecodeError) else "broken.value"
        raise _BrokenRecord(rule, str(error)) from error
    return {name: value for name, value in found.items() if value is not None}


def _image_value(value: object) -> object:
    """Return the path or bytes in a row's image field, or whatever else it holds."""
    if isinstance(value, dict):  # the feature `Image` of Hugging Face datasets
        return value.get("bytes") or value.get("path")
    return value


def _image_bytes(value: object, root: Path) -> bytes:
    """Return the bytes of the image that a row names or holds."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise _BrokenRecord("broken.columns", "no image path")
    return _read_bytes(root, Path(root, value), MAX_IMAGE_BYTES)


def _broken(key: str, place: str, error: _BrokenRecord) -> ImageRecord:
    return ImageRecord(key, place, broken=error.rule, error=str(error))


def _resolve_inside(root: Path, path: Path) -> Path:
    """Return the resolved path of something below the root."""
    try:
        real = path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a loop of links
        raise _BrokenRecord("broken.path", f"not a path: {error}") from error
    if not real.is_relative_to(root.resolve()):
        raise _BrokenRecord("broken.path", "leaves the source's folder")
    return real


def _read_bytes(root: Path, path: Path, limit: int) -> bytes:
    """Return the content of a regular file below the root."""
    real = _resolve_inside(root, path)
    try:
        status = real.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
            raise _BrokenRecord("broken.path", "not a file")
        if status.st_size > limit:
            raise _BrokenRecord("broken.size", f"{status.st_size} bytes")
        return real.read_bytes()
    except OSError as error:
        raise _BrokenRecord("broken.image", f"{error.strerror}: {path.name}") from error
