"""Sources of text: their names, their files in order, and what identifies their content.

python:docs                    the documentation of the running Python installation, without the
                               objects that `python_questions` and `python_preferences` hold out
notes.txt  data/*.jsonl.zst    a file or a glob
corpus/                        a folder: every file of a known suffix below it
hf:corpus  hf:org/name@v1      a Hugging Face dataset: a folder, or one of the hub
s3://b/corpus  https://…/*.gz  the same by any URL of fsspec, where the storage can list
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import InputError
from stages.curation.content_digest import digest_rows
from stages.curation.source_piece import list_pieces
from stages.distributed.shard_tasks import group_by_size
from stages.text.sources import fsspec_files
from stages.text.sources.file_io import file_digest
from stages.text.sources.file_splitting import split_file
from stages.text.sources.source_file import SourceFile

PYTHON_DOCS = "python:docs"
SUFFIXES = (
    *(".txt", ".md", ".rst", ".html", ".htm", ".parquet"),
    *(".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv", ".csv.gz", ".csv.zst"),
    *(".warc", ".warc.gz", ".warc.wet", ".warc.wet.gz"),
)
SHARD_BYTES = 4 << 20  # of source files: a task of seconds, so that a kill costs seconds


def list_files(sources: Sequence[str]) -> list[SourceFile]:
    """List the files of the sources, those of each source in a fixed order.

    Raises:
        InputError: a source does not exist, has no readable file, or is of an unknown type.
    """
    return list_pieces(sources, _source_files)


def content_digest(source: str) -> str:
    """Return what identifies the content of a source, wherever it is stored.

    Raises:
        InputError: as `list_files`.
    """
    if source == PYTHON_DOCS:
        from stages.text.python_docs import installed_files

        return installed_files.installation_digest()
    if source.startswith("hf:"):
        from stages.text.sources.hf_datasets import dataset_digest

        return dataset_digest(source)
    files = _source_files(source)
    return digest_rows((file.source, file.place, file_digest(file)) for file in files)


def make_shards(files: Sequence[SourceFile]) -> list[list[SourceFile]]:
    """Group consecutive files up to `SHARD_BYTES` together, at least one per shard; larger files
    are split where their format allows it.

    Raises:
        InputError: a file that is to be split cannot be read.
    """
    parts = (part for file in files for part in split_file(file, SHARD_BYTES))
    return group_by_size(parts, SHARD_BYTES)


def _source_files(source: str) -> Iterator[SourceFile]:
    if source == PYTHON_DOCS:
        from stages.text.python_docs.installed_files import installed_files

        for file in installed_files():
            place = f"{file.distribution}/{file.place}"
            yield SourceFile(PYTHON_DOCS, place, file.path, file.size)
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
    root, paths = _local_files(source)
    if not paths:
        raise InputError(
            f"source {source!r} has no readable file",
            where=str(root),
            remedy=f"known suffixes are {' '.join(SUFFIXES)}",
        )
    for path in paths:
        name = path.relative_to(root).as_posix()
        yield SourceFile(root.name or "/", name, str(path), path.stat().st_size)


def _local_files(source: str) -> tuple[Path, list[Path]]:
    """Return the folder that names are relative to, and the files in order."""
    path = Path(source).expanduser().absolute()
    if path.is_file():
        if not _is_readable(path):
            raise InputError(
                f"source {source!r} is of an unknown type",
                remedy=f"known suffixes are {' '.join(SUFFIXES)}",
            )
        return path.parent, [path]
    if path.is_dir():
        return path, sorted(p for p in path.rglob("*") if p.is_file() and _is_readable(p))
    if glob.has_magic(source):
        fixed = next(p for p in path.parents if not glob.has_magic(str(p)))
        found = fixed.glob(str(path.relative_to(fixed)))
        return fixed, sorted(p for p in found if p.is_file() and _is_readable(p))
    raise InputError(
        f"source {source!r} does not exist", where=str(path), remedy="check the path in `sources`"
    )


def _is_readable(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)
