"""Hugging Face datasets: `hf:NAME[@REVISION][?split=train&config=NAME]`.

NAME is a folder on this machine, saved by `save_to_disk` or holding files that the library knows
(parquet, arrow, json, csv), or a dataset of the hub. The split is `train` unless it is named; a
saved dataset may have none. All but saved datasets are streamed: nothing is downloaded that is not
read. A dataset of the hub is what its commit holds: a branch or tag is looked up when the pipeline
is planned, and a full commit is not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import xxhash

from pipeline.errors import InputError
from stages.text.sources.source_listing import Cut, SourceFile, file_digest

PREFIX = "hf:"
_PATIENCE = 10  # seconds for the hub to answer
_FORM = "write hf:NAME[@REVISION][?split=train&config=NAME]"
_NO_DATA = re.compile(r"\.|cache-|state\.json$|dataset_info\.json$|dataset_dict\.json$")


@dataclass(frozen=True, slots=True)
class HFDataset:
    """A split of a dataset."""

    name: str
    revision: str | None
    split: str
    config: str | None

    @property
    def folder(self) -> Path | None:
        """Where it is, if on this machine."""
        path = Path(self.name).expanduser()
        return path.absolute() if path.is_dir() else None

    @property
    def title(self) -> str:
        """What tables call it."""
        return self.folder.name if self.folder else self.name

    @property
    def saved(self) -> Path | None:
        """The folder of the split, where `save_to_disk` wrote it.

        Raises:
            InputError: others were saved, but not this one.
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


def parse(source: str) -> HFDataset:
    """What a source names.

    Raises:
        InputError: it is of another form.
    """
    path, _, query = source.removeprefix(PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    local = Path(path).expanduser().is_dir()
    name, _, revision = (path, "", "") if local else path.partition("@")
    if not name or not options.keys() <= {"split", "config"} or "" in options.values():
        raise InputError(f"{source!r} names no dataset", remedy=_FORM)
    if not local and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise InputError(f"dataset folder {name!r} does not exist", remedy=_FORM)
    split = options.get("split", "train")
    return HFDataset(name, revision or None, split, options.get("config"))


def dataset_files(source: str, size: int) -> Iterator[SourceFile]:
    """The parts of a dataset: rows of about `size` bytes if it was saved, else each file of its.

    Raises:
        InputError: it is not there, has no such split, or the hub cannot be reached.
    """
    dataset = _resolve_revision(parse(source))
    with _told(dataset):
        if dataset.saved and dataset.folder:
            yield from _saved_parts(dataset, size)
            return
        stream = _stream(dataset)
        count = stream.num_shards
        for index in range(count):
            place = f"{dataset.split}/{index:05d}-of-{count:05d}"
            cut = Cut(index, count, 0, 0)
            yield SourceFile(dataset.title, place, str(dataset), size, cut=cut)


def dataset_digest(source: str) -> str:
    """What identifies the content: that of the files of a folder, or the hub's commit.

    Raises:
        InputError: as `dataset_files`.
    """
    dataset = _resolve_revision(parse(source))
    state = xxhash.xxh3_128(f"{dataset.title}\0{dataset.split}\0{dataset.config}\n".encode())
    if dataset.folder is None:
        state.update(f"{dataset.revision}".encode())
        return state.hexdigest()
    root = dataset.saved or dataset.folder
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        if not _NO_DATA.match(path.name):
            place = path.relative_to(root).as_posix()
            file = SourceFile(dataset.title, place, str(path), 0)
            state.update(f"{place}\0{file_digest(file)}\n".encode())
    return state.hexdigest()


def dataset_rows(file: SourceFile, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows of a part, of which only these columns are read.

    Raises:
        InputError: it has no column of the first name, or cannot be read.
    """
    import datasets

    dataset, cut = parse(file.path), file.cut
    assert cut is not None
    with _told(dataset):
        if dataset.saved:
            table = datasets.load_from_disk(str(dataset.saved))
            rows = table.select(range(cut.start, cut.end))
        else:
            rows = _stream(dataset).shard(num_shards=cut.end, index=cut.start)
        names = rows.column_names
        if names is not None and columns[0] not in names:
            raise InputError(
                f"no column {columns[0]!r}",
                where=str(dataset),
                remedy=f"set text_column to one of {', '.join(names)}",
            )
        if names is not None:
            rows = rows.select_columns([name for name in columns if name in names])
    yield from rows


def _saved_parts(dataset: HFDataset, size: int) -> Iterator[SourceFile]:
    import datasets

    table = datasets.load_from_disk(str(dataset.saved))
    held = sum(Path(part["filename"]).stat().st_size for part in table.cache_files)
    step = max(1, size * len(table) // max(1, held))
    whole = SourceFile(dataset.title, dataset.split, str(dataset), min(size, held))
    for start in range(0, len(table), step):
        yield replace(whole, cut=Cut(start, min(start + step, len(table)), start, start))


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
    """With the commit in place of a branch or tag; and a hub that is not there is told at once."""
    whole = re.fullmatch(r"[0-9a-f]{40}", dataset.revision or "")
    offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}
    if dataset.folder is not None or (whole and offline):
        return dataset
    from huggingface_hub import HfApi

    with _told(dataset):
        asked = HfApi().dataset_info(dataset.name, revision=dataset.revision, timeout=_PATIENCE)
        return replace(dataset, revision=asked.sha)


@contextmanager
def _told(dataset: HFDataset) -> Iterator[None]:
    """What the libraries raise as the user's error: each has a tree of its own."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        remedy = "check its name, split and config"
        if dataset.folder is None:
            remedy += "; the hub must be reachable, or the commit be named and in the local cache"
        raise InputError(
            f"dataset {str(dataset)!r} cannot be read: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}",
            remedy=remedy,
        ) from error
