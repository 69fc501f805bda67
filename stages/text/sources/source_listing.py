"""Sources of text: their names, their files in order, and what identifies their content.

python:docs                    the documentation of the running Python installation, without the
                               objects that `python_questions` and `python_preferences` hold out
notes.txt  data/*.jsonl.zst    a file or a glob
corpus/                        a folder: every file of a known ending below it, but for
                               hidden folders and those of tools
hf:corpus  hf:org/name@v1      a Hugging Face dataset: a folder, or one of the hub
s3://b/corpus  https://…/*.gz  the same by any URL of fsspec, where the storage can list
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from pipeline.errors import InputError
from stages.curation.content_digest import digest_rows
from stages.curation.folder_listing import LeftOut, describe_left_out, list_folder, list_glob
from stages.curation.source_piece import list_pieces
from stages.distributed.shard_tasks import group_by_size
from stages.text.sources import fsspec_files
from stages.text.sources.file_formats import ALL_FORMATS, TEXTS, FileFormats
from stages.text.sources.file_io import file_digest
from stages.text.sources.file_splitting import split_file
from stages.text.sources.source_file import SourceFile

PYTHON_DOCS = "python:docs"
SHARD_BYTES = 4 << 20  # of source files: a task of seconds, so that a kill costs seconds


def list_files(
    sources: Sequence[str], left_out: LeftOut | None = None, formats: FileFormats = ALL_FORMATS
) -> list[SourceFile]:
    """List the files of the sources, those of each source in a fixed order.

    Args:
        sources: their names.
        left_out: counts the files that are not read, by reason.
        formats: those of the files to read.

    Raises:
        InputError: a source does not exist, has no readable file, or is of an unknown type.
    """
    counts = LeftOut() if left_out is None else left_out
    return list_pieces(sources, lambda source: _source_files(source, counts, formats))


def content_digest(source: str, formats: FileFormats = ALL_FORMATS) -> str:
    """Return what identifies the content of a source, wherever it is stored.

    Args:
        source: its name.
        formats: those of the files to read.

    Raises:
        InputError: as `list_files`.
    """
    if source == PYTHON_DOCS and formats.accepts(TEXTS[0]):
        from stages.text.python_docs import installed_files

        return installed_files.installation_digest()
    if source.startswith("hf:"):
        from stages.text.sources.hf_datasets import dataset_digest

        return dataset_digest(source)
    files = _source_files(source, LeftOut(), formats)
    return digest_rows((file.source, file.place, file_digest(file)) for file in files)


def make_shards(files: Sequence[SourceFile]) -> list[list[SourceFile]]:
    """Group consecutive files up to `SHARD_BYTES` together, at least one per shard; larger files
    are split where their format allows it.

    Raises:
        InputError: a file that is to be split cannot be read.
    """
    parts = (part for file in files for part in split_file(file, SHARD_BYTES))
    return group_by_size(parts, SHARD_BYTES)


def _source_files(source: str, left_out: LeftOut, formats: FileFormats) -> Iterator[SourceFile]:
    if source == PYTHON_DOCS:
        if not formats.accepts(TEXTS[0]):
            remedy = f"name files: {formats.remedy}"
            raise InputError(f"source {source!r} holds texts without fields", remedy=remedy)
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
        if not Path(source).exists() and Path(unquote(source)).exists():
            source = unquote(source)  # of a URI, as opposed to a path with a prefix
    elif fsspec_files.is_url(source):
        name, found = fsspec_files.list_url(source, formats, left_out)
        yield from (SourceFile(name, place, url, size) for place, url, size in found)
        return
    if ":" in source.split("/", 1)[0]:
        raise InputError(
            f"unknown source {source!r}",
            remedy=f"use {PYTHON_DOCS!r}, a file, a folder, a glob pattern, a URL or hf:NAME",
        )
    here = LeftOut()
    root, paths = _local_files(source, here, formats)
    if not paths:
        there = f" (it has {describe_left_out(here)})" if here else ""
        raise InputError(
            f"source {source!r} has no readable file{there}",
            where=str(root),
            remedy=formats.remedy,
        )
    left_out.update(here)
    for path in paths:
        name = path.relative_to(root).as_posix()
        yield SourceFile(root.name or "/", name, str(path), path.stat().st_size)


def _local_files(source: str, left_out: LeftOut, formats: FileFormats) -> tuple[Path, list[Path]]:
    """Return the folder that names are relative to, and the files in order."""
    path = Path(source).expanduser().absolute()
    if path.is_file():
        if not formats.accepts(path.name):
            raise InputError(f"source {source!r} is of an unknown type", remedy=formats.remedy)
        return path.parent, [path]
    if path.is_dir():
        return path, list_folder(path, formats.accepts, left_out)
    if glob.has_magic(source):
        fixed = next(p for p in path.parents if not glob.has_magic(str(p)))
        return fixed, list_glob(fixed, str(path.relative_to(fixed)), formats.accepts, left_out)
    raise InputError(
        f"source {source!r} does not exist", where=str(path), remedy="check the path in `sources`"
    )
