"""Where images with captions come from, in which order, and what identifies their content.

photos/                      a folder: every image below it, its captions beside it (`a.jpg`:
                             `a.txt`, one a line) and its metadata (`a.json`)
pairs.csv, .tsv, .jsonl,     a manifest: one image a row, by its path from the manifest's folder
.parquet                     (in parquet also by its bytes)
shards-*.tar                 WebDataset tars; any source may be a glob
"""

from __future__ import annotations

import csv
import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import xxhash

from pipeline.errors import InputError
from stages.data import tar_format

MANIFESTS = (".csv", ".tsv", ".jsonl", ".parquet")
SUFFIXES = (*MANIFESTS, ".tar")
PIECE_BYTES = 16 << 20  # of images: a task of seconds, so that a kill costs seconds
PIECE_RECORDS = 256  # a manifest does not say how large its images are
LONGEST_FIELD = 1 << 24  # characters of a csv field


@dataclass(frozen=True, slots=True)
class Piece:
    """What a task reads: a part of a tar or manifest, or some images of a folder."""

    source: str
    """What tables call its origin; the same wherever the files lie."""
    place: str
    """The file's name within the source; empty for a folder."""
    path: str
    """The file or folder on this machine."""
    origin: int = 0
    """The source's position among those that were named."""
    size: int = 0
    """About how many bytes are read."""
    first: int = 0
    """Records of the file before it."""
    start: int = 0
    """First byte; first row of a parquet file."""
    end: int | None = None
    """One past the last; null reads to the end."""
    names: tuple[str, ...] = ()
    """The images of a folder, or the columns of a csv file."""

    @property
    def kind(self) -> str:
        """`folder`, `tar`, `csv`, `tsv`, `jsonl` or `parquet`."""
        return Path(self.path).suffix.lower().removeprefix(".") if self.place else "folder"


def whole_files(sources: Sequence[str]) -> list[Piece]:
    """The files and folders of the sources, uncut, in a fixed order.

    Raises:
        InputError: a source does not exist, or holds nothing of a known type.
    """
    return [
        replace(piece, origin=origin)
        for origin, source in enumerate(sources)
        for piece in _of_source(source)
    ]


def pieces(sources: Sequence[str]) -> list[Piece]:
    """The same in pieces of about `PIECE_BYTES` or `PIECE_RECORDS`, whichever is less.

    Raises:
        InputError: as `whole_files`, or a file cannot be opened.
    """
    return [part for whole in whole_files(sources) for part in _cut(whole)]


def _of_source(source: str) -> Iterator[Piece]:
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        yield _folder(path, source)
        return
    if path.is_file():
        root, found = path.parent, [path]
    elif glob.has_magic(source):
        root = next(p for p in path.parents if not glob.has_magic(str(p)))
        found = sorted(p for p in root.glob(str(path.relative_to(root))) if p.is_file())
    else:
        remedy = "check the path; name local files, folders or globs"
        raise InputError(f"source {source!r} does not exist", where=str(path), remedy=remedy)
    readable = [file for file in found if file.name.lower().endswith(SUFFIXES)]
    if not readable:
        raise InputError(
            f"source {source!r} holds nothing of a known type",
            where=str(path),
            remedy=f"name folders of images, or files {' '.join(SUFFIXES)}",
        )
    for file in readable:
        place = file.relative_to(root).as_posix()
        yield Piece(root.name or "/", place, str(file), size=file.stat().st_size)


def _folder(path: Path, source: str) -> Piece:
    endings = tuple(f".{suffix}" for suffix in tar_format.IMAGE_SUFFIXES)
    found = sorted(p for p in path.rglob("*") if p.name.lower().endswith(endings))
    names = tuple(file.relative_to(path).as_posix() for file in found)
    if not names:
        raise InputError(
            f"source {source!r} holds no {', '.join(tar_format.IMAGE_SUFFIXES)} file",
            where=str(path),
            remedy="name files in it by a glob, as in 'folder/*.tar'",
        )
    size = sum(file.stat().st_size for file in found if file.is_file())
    return Piece(path.name or "/", "", str(path), size=size, names=names)


def _cut(piece: Piece) -> Iterator[Piece]:
    cutter = {"folder": _cut_folder, "tar": _cut_tar, "parquet": _cut_parquet}.get(piece.kind)
    try:
        yield from (cutter or _cut_lines)(piece)
    except OSError as error:
        raise unreadable(piece.path, error) from error


def unreadable(path: str, error: OSError) -> InputError:
    """The error of a file that cannot be opened."""
    said = f"cannot read the source: {error.strerror or error}"
    return InputError(said, where=path, remedy="check its rights")


def _cut_folder(piece: Piece) -> Iterator[Piece]:
    held: list[str] = []
    size = first = 0
    for name in piece.names:
        path = Path(piece.path, name)
        held.append(name)
        size += path.stat().st_size if path.is_file() else 0
        if size >= PIECE_BYTES or len(held) >= PIECE_RECORDS:
            yield replace(piece, names=tuple(held), size=size, first=first)
            held, size, first = [], 0, first + len(held)
    if held:
        yield replace(piece, names=tuple(held), size=size, first=first)


def _cut_tar(piece: Piece) -> Iterator[Piece]:
    """Cut before samples; where the archive is damaged, its reader says so."""
    start = first = number = 0
    with Path(piece.path).open("rb") as stream:
        try:
            for number, group in enumerate(tar_format.groups(tar_format.members(stream.fileno()))):
                full = group.header - start >= PIECE_BYTES or number - first >= PIECE_RECORDS
                if full and not group.problem:  # which may lie within a sample
                    size = group.header - start
                    yield replace(piece, start=start, end=group.header, size=size, first=first)
                    start, first = group.header, number
        except tar_format.BrokenTar:
            pass
    yield replace(piece, start=start, size=piece.size - start, first=first)


def _cut_lines(piece: Piece) -> Iterator[Piece]:
    with Path(piece.path).open("rb") as stream:
        lines = Lines(stream)
        if piece.kind == "jsonl":
            yield from _ranges(piece, lines, lines)
            return
        rows = table(lines, piece.kind)
        try:
            names = tuple(next(rows, []))
        except csv.Error:
            yield piece  # its reader says what is wrong
            return
        yield from _ranges(replace(piece, names=names), rows, lines)


def _ranges(piece: Piece, records: Iterator[object], lines: Lines) -> Iterator[Piece]:
    """Ranges of bytes that each hold `PIECE_RECORDS` records; the last is open."""
    start, first = lines.read, 0
    try:
        for number, _ in enumerate(records, 1):
            if number % PIECE_RECORDS == 0:
                end = lines.read
                yield replace(piece, start=start, end=end, size=end - start, first=first)
                start, first = end, number
    except csv.Error:
        pass
    if start < piece.size or not first:
        yield replace(piece, start=start, size=piece.size - start, first=first)


class Lines:
    """The lines of a file as text, and how many bytes of it were read."""

    def __init__(self, stream: IO[bytes], end: int | None = None) -> None:
        self._stream = stream
        self._end = end
        self.read = stream.tell()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._end is not None and self.read >= self._end:
            raise StopIteration
        line = self._stream.readline()
        if not line:
            raise StopIteration
        first = self.read == 0
        self.read += len(line)
        return line.decode("utf-8-sig" if first else "utf-8", "replace")


def table(lines: Iterator[str], kind: str) -> Iterator[list[str]]:
    """The rows of a csv or tsv file."""
    csv.field_size_limit(LONGEST_FIELD)
    return csv.reader(lines, delimiter="\t" if kind == "tsv" else ",")


def damaged(error: Exception) -> bool:
    """Whether an error of pyarrow's is of a file's content; one of the system has a number."""
    return not isinstance(error, OSError) or error.errno is None


def _cut_parquet(piece: Piece) -> Iterator[Piece]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.ParquetFile(piece.path).metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        if not damaged(error):
            raise
        yield piece  # its reader says what is wrong
        return
    for start in range(0, rows, PIECE_RECORDS):
        end = min(rows, start + PIECE_RECORDS)
        size = piece.size * (end - start) // rows
        yield replace(piece, start=start, end=end, size=size, first=start)


def file_digest(path: Path) -> str:
    """What identifies the content of a file.

    Raises:
        OSError: it cannot be read.
    """
    state = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            state.update(block)
    return state.hexdigest()
