"""Where text comes from: a source's name, its files in order, and what identifies their content.

python:docs                    the documentation of the running Python installation, less the
                               objects that `questions` and `preferences` hold out
notes.txt  data/*.jsonl.zst    a file or a glob
corpus/                        a folder: every file of a known suffix below it
hf:corpus  hf:org/name@v1      a Hugging Face dataset: a folder, or one of the hub
s3://b/corpus  https://…/*.gz  the same by any URL that fsspec knows, where the storage can list
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from pipeline.errors import InputError
from stages.text.sources import fsspec_files

PYTHON_DOCS = "python:docs"
SUFFIXES = (
    *(".txt", ".md", ".rst", ".html", ".htm", ".parquet"),
    *(".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv", ".csv.gz", ".csv.zst"),
    *(".warc", ".warc.gz", ".warc.wet", ".warc.wet.gz"),
)
SHARD_BYTES = 4 << 20  # of source files: a task of seconds, so that a kill costs seconds


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of a file that a piece is."""

    start: int
    """First byte, or first row group."""
    end: int
    """One past the last."""
    records: int
    """Documents of the file before it."""
    lines: int
    """Lines, or rows, of the file before it."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that holds documents."""

    source: str
    """What tables call its origin; the same wherever the files lie."""
    place: str
    """The file's name within the source; ids are made from source, place and position."""
    path: str
    """Where it is on this machine, or its URL, which may hold what is secret: see `shown`."""
    size: int
    """Bytes."""
    origin: int = 0
    """The source's position among those that were named."""
    cut: Cut | None = None
    """The part that is read; null reads all of it."""

    @property
    def is_remote(self) -> bool:
        """Whether `path` is a URL."""
        return fsspec_files.is_url(self.path)

    @property
    def is_dataset(self) -> bool:
        """Whether it is a part of a Hugging Face dataset."""
        return self.path.startswith("hf:")

    @property
    def display_path(self) -> str:
        """Where it is, for people."""
        return fsspec_files.redact_url(self.path) if self.is_remote else self.path


def list_files(sources: Sequence[str]) -> list[SourceFile]:
    """The files of the sources, each source's in a fixed order.

    Raises:
        InputError: a source does not exist, holds nothing readable, or is of no known type.
    """
    return [
        replace(file, origin=origin)
        for origin, source in enumerate(sources)
        for file in _files(source)
    ]


def content_digest(source: str) -> str:
    """What identifies the content of a source, wherever it lies.

    Raises:
        InputError: as `list_files`.
    """
    if source == PYTHON_DOCS:
        from stages.text.python_docs import installed_files

        return installed_files.digest()
    if source.startswith("hf:"):
        from stages.text.sources.hf_datasets import dataset_digest

        return dataset_digest(source)
    state = xxhash.xxh3_128()
    for file in _files(source):
        state.update(f"{file.source}\0{file.place}\0{file_digest(file)}\n".encode())
    return state.hexdigest()


def make_shards(files: Sequence[SourceFile]) -> list[list[SourceFile]]:
    """Consecutive files up to `SHARD_BYTES` together; at least one each. Larger ones are cut where
    their format allows it.

    Raises:
        InputError: a file that is to be cut cannot be read.
    """
    from stages.text.sources.file_splitting import split_file

    cut: list[list[SourceFile]] = []
    room = 0
    for piece in (piece for file in files for piece in split_file(file, SHARD_BYTES)):
        if not cut or piece.size > room:
            cut.append([])
            room = SHARD_BYTES
        cut[-1].append(piece)
        room -= piece.size
    return cut


def _files(source: str) -> Iterator[SourceFile]:
    if source == PYTHON_DOCS:
        yield from _python_docs()
        return
    if source.startswith("hf:"):
        from stages.text.sources.hf_datasets import dataset_files

        yield from dataset_files(source, SHARD_BYTES)
        return
    if source.startswith("file://"):
        source = source.removeprefix("file://")
    elif fsspec_files.is_url(source):
        name, found = fsspec_files.list_url(source, SUFFIXES)
        yield from (SourceFile(name, place, url, size) for place, url, size in found)
        return
    if ":" in source.split("/", 1)[0]:
        raise InputError(
            f"unknown source {source!r}",
            remedy=f"use {PYTHON_DOCS!r}, a file, a folder, a glob pattern, a URL or hf:NAME",
        )
    root, paths = _local(source)
    if not paths:
        raise InputError(
            f"source {source!r} holds no readable file",
            where=str(root),
            remedy=f"known suffixes are {' '.join(SUFFIXES)}",
        )
    for path in paths:
        name = path.relative_to(root).as_posix()
        yield SourceFile(root.name or "/", name, str(path), path.stat().st_size)


def _python_docs() -> Iterator[SourceFile]:
    from stages.text.python_docs.installed_files import installed_files

    for file in installed_files():
        place = f"{file.distribution}/{file.place}"
        yield SourceFile(PYTHON_DOCS, place, file.path, file.size)


def _local(source: str) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files in order."""
    path = Path(source).expanduser().absolute()
    if path.is_file():
        if not _readable(path):
            raise InputError(
                f"source {source!r} is of no known type",
                remedy=f"known suffixes are {' '.join(SUFFIXES)}",
            )
        return path.parent, [path]
    if path.is_dir():
        return path, sorted(p for p in path.rglob("*") if p.is_file() and _readable(p))
    if glob.has_magic(source):
        fixed = next(p for p in path.parents if not glob.has_magic(str(p)))
        found = fixed.glob(str(path.relative_to(fixed)))
        return fixed, sorted(p for p in found if p.is_file() and _readable(p))
    raise InputError(
        f"source {source!r} does not exist", where=str(path), remedy="check the path in `sources`"
    )


def _readable(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def file_digest(file: SourceFile) -> str:
    """What identifies the content of a file.

    Raises:
        InputError: it cannot be read.
    """
    if file.is_remote:
        return fsspec_files.url_digest(file.path)
    state = xxhash.xxh3_128()
    try:
        with Path(file.path).open("rb") as stream:
            while block := stream.read(1 << 20):
                state.update(block)
    except OSError as error:
        raise InputError(
            f"cannot read the source: {error.strerror}", where=file.path, remedy="check its rights"
        ) from error
    return state.hexdigest()
