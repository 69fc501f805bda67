"""Hugging Face datasets: `hf:NAME[@REVISION][?split=train&config=NAME]`.

NAME is a local folder, written by `save_to_disk` or holding files that the library reads (parquet,
arrow, json, csv), or a dataset of the hub. The split is `train` unless named; a saved dataset may
have none. All but saved datasets are streamed: only what is read is downloaded. A dataset of the
hub is identified by its commit: a branch or tag is resolved when the pipeline is planned, and a
full commit needs no lookup.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import xxhash

from pipeline.errors import InputError
from stages.data.input_errors import as_input_error
from stages.text.sources.file_io import file_digest
from stages.text.sources.source_file import FilePart, SourceFile

if TYPE_CHECKING:
    import pyarrow as pa

PREFIX = "hf:"
_BATCH = 1024  # rows in memory
_DAMAGE = (ValueError, OSError, EOFError, zlib.error)
_TIMEOUT = 10  # seconds, of a request to the hub
_FORM = "write hf:NAME[@REVISION][?split=train&config=NAME]"
_NO_DATA = re.compile(r"\.|cache-|state\.json$|dataset_info\.json$|dataset_dict\.json$")


@dataclass(frozen=True, slots=True)
class HFDataset:
    """A split of a Hugging Face dataset."""

    name: str
    revision: str | None
    split: str
    config: str | None

    @property
    def folder(self) -> Path | None:
        """The local folder; None for a dataset of the hub."""
        path = Path(self.name).expanduser()
        return path.absolute() if path.is_dir() else None

    @property
    def title(self) -> str:
        """The name in tables."""
        return self.folder.name if self.folder else self.name

    @property
    def saved_folder(self) -> Path | None:
        """The folder of the split that `save_to_disk` wrote; None if it wrote no folder.

        Raises:
            InputError: other splits were saved, but not this one.
        """
        if self.folder is None or (self.folder / "state.json").is_file():
            return self.folder
        if not (self.folder / "dataset_dict.json").is_file():
            return None
        if not (self.folder / self.split / "state.json").is_file():
            splits = sorted(path.parent.name for path in self.folder.glob("*/state.json"))
            raise InputError(
                f"dataset {self.title!r} has no split {self.split!r}",
                where=str(self.folder),
                remedy=f"add ?split= and one of {', '.join(splits)}",
            )
        return self.folder / self.split

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        config = f"&config={self.config}" if self.config else ""
        return f"{PREFIX}{self.name}{at}?split={self.split}{config}"


def parse_dataset(source: str) -> HFDataset:
    """Return the dataset that a source names.

    Raises:
        InputError: the source is of another form.
    """
    path, _, query = source.removeprefix(PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    local = Path(path).expanduser().is_dir()
    name, _, revision = (path, "", "") if local else path.partition("@")
    if not name or not options.keys() <= {"split", "config"} or "" in options.values():
        raise InputError(f"{source!r} does not name a dataset", remedy=_FORM)
    if not local and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise InputError(f"dataset folder {name!r} does not exist", remedy=_FORM)
    split = options.get("split", "train")
    return HFDataset(name, revision or None, split, options.get("config"))


def dataset_files(source: str, size: int) -> Iterator[SourceFile]:
    """Yield the parts of a dataset: rows of about `size` bytes if it was saved, else its files.

    Raises:
        InputError: it does not exist, has no such split, or the hub cannot be reached.
    """
    dataset = _resolve_revision(parse_dataset(source))
    with _dataset_errors(dataset):
        if dataset.saved_folder and dataset.folder:
            yield from _saved_parts(dataset, size)
            return
        stream = _stream(dataset)
        count = stream.num_shards
        for index in range(count):
            place = f"{dataset.split}/{index:05d}-of-{count:05d}"
            part = FilePart(index, count, 0, 0)
            yield SourceFile(dataset.title, place, str(dataset), size, part=part)


def dataset_digest(source: str) -> str:
    """Return what identifies the content: the files of a folder, or the commit of the hub.

    Raises:
        InputError: as `dataset_files`.
    """
    dataset = _resolve_revision(parse_dataset(source))
    state = xxhash.xxh3_128(f"{dataset.title}\0{dataset.split}\0{dataset.config}\n".encode())
    if dataset.folder is None:
        state.update(f"{dataset.revision}".encode())
        return state.hexdigest()
    root = dataset.saved_folder or dataset.folder
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        if not _NO_DATA.match(path.name):
            place = path.relative_to(root).as_posix()
            file = SourceFile(dataset.title, place, str(path), 0)
            state.update(f"{place}\0{file_digest(file)}\n".encode())
    return state.hexdigest()


def dataset_tables(
    file: SourceFile, select: Callable[[Sequence[str], str], list[str]]
) -> Iterator[pa.Table]:
    """Yield the rows of a part as Arrow tables, whose strings are not validated.

    Args:
        file: the part.
        select: returns the columns to read, from all columns and the name of the dataset; not
            called where the dataset does not list its columns.

    Raises:
        InputError: the part cannot be read, or as `select`.
    """
    import datasets

    dataset, part = parse_dataset(file.path), file.part
    assert part is not None
    with _dataset_errors(dataset):
        if dataset.saved_folder:
            table = datasets.load_from_disk(str(dataset.saved_folder))
            rows = table.select(range(part.start, part.end))
        else:
            rows = _stream(dataset).shard(num_shards=part.end, index=part.start)
        if rows.column_names is not None:
            rows = rows.select_columns(select(rows.column_names, str(dataset)))
        rows = rows.with_format("arrow")
    done = 0
    try:
        for table in rows.iter(_BATCH):
            yield table
            done += table.num_rows
    except _DAMAGE:
        yield from rows.skip(done).iter(1)  # the rows before the damage, then its error


def _saved_parts(dataset: HFDataset, size: int) -> Iterator[SourceFile]:
    import datasets

    table = datasets.load_from_disk(str(dataset.saved_folder))
    stored = sum(Path(file["filename"]).stat().st_size for file in table.cache_files)
    step = max(1, size * len(table) // max(1, stored))
    whole = SourceFile(dataset.title, dataset.split, str(dataset), min(size, stored))
    for start in range(0, len(table), step):
        end = min(start + step, len(table))
        yield replace(whole, part=FilePart(start, end, start, start))


def _stream(dataset: HFDataset) -> Any:
    import datasets

    return datasets.load_dataset(
        str(dataset.folder or dataset.name),
        dataset.config,
        split=dataset.split,
        revision=dataset.revision,
        streaming=True,
    )


def _resolve_revision(dataset: HFDataset) -> HFDataset:
    """Return the dataset with the commit in place of a branch or tag.

    Raises:
        InputError: the hub cannot be reached.
    """
    commit = re.fullmatch(r"[0-9a-f]{40}", dataset.revision or "")
    offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}
    if dataset.folder is not None or (commit and offline):
        return dataset
    with _dataset_errors(dataset):
        return replace(dataset, revision=_hub_commit(dataset.name, dataset.revision))


@cache
def _hub_commit(name: str, revision: str | None) -> str:
    """Return the commit that a branch or tag names: the same one throughout a process, so that a
    stage reads the commit that it compared with the plan."""
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(name, revision=revision, timeout=_TIMEOUT).sha)


def _dataset_errors(dataset: HFDataset) -> AbstractContextManager[None]:
    """Return a context that raises the libraries' errors as an `InputError`."""

    def translate(error: Exception) -> InputError:
        remedy = "check its name, split and config"
        if dataset.folder is None:
            remedy += "; the hub must be reachable, or name a commit that is in the local cache"
        return InputError(
            f"dataset {str(dataset)!r} cannot be read: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}",
            remedy=remedy,
        )

    return as_input_error(translate)
