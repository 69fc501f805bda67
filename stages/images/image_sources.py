"""Sources of images with captions: their files in order, cut into pieces for tasks.

photos/                      a folder: every image below it, with its captions (`a.txt` next to
                             `a.jpg`, one per line) and its metadata (`a.json`)
pairs.csv, .tsv, .jsonl,     a manifest: one image per row, by its path from the manifest's folder
.parquet                     (in parquet also by its bytes)
shards-*.tar                 WebDataset tars; any source may be a glob
"""

from __future__ import annotations

import csv
import glob
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from pipeline.errors import InputError
from stages.curation.source_piece import SourcePiece, list_pieces
from stages.data import tar_format
from stages.data.input_errors import as_input_error

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
SUFFIXES = (*MANIFEST_SUFFIXES, ".tar")
PIECE_BYTES = 16 << 20  # of images: a task takes seconds, so that a kill loses only seconds
PIECE_RECORDS = 256  # the rows of a manifest do not give the sizes of its images
MAX_FIELD = 1 << 24  # characters of a csv field


@dataclass(frozen=True, slots=True)
class ImagePiece(SourcePiece):
    """The images that a task reads: a part of a tar or manifest, or some images of a folder."""

    first: int = 0
    """Number of records of the file before the piece."""
    start: int = 0
    """First byte; first row of a parquet file."""
    end: int | None = None
    """End of the bytes or rows, exclusive; None reads to the end of the file."""
    names: tuple[str, ...] = ()
    """Images of a folder, or columns of a csv file."""

    @property
    def first_record(self) -> int:
        """Number of records of the file before the piece."""
        return self.first

    @property
    def kind(self) -> str:
        """One of `folder`, `tar`, `csv`, `tsv`, `jsonl` and `parquet`."""
        return Path(self.path).suffix.lower().removeprefix(".") if self.place else "folder"


def list_files(sources: Sequence[str]) -> list[ImagePiece]:
    """Return the files and folders of the sources, each as one piece, in a fixed order.

    Raises:
        InputError: a source does not exist, or has no file of a known type.
    """
    return list_pieces(sources, _list_source)


def split_files(sources: Sequence[str]) -> list[ImagePiece]:
    """Return the same in pieces of about `PIECE_BYTES` or `PIECE_RECORDS`, whichever is less.

    Raises:
        InputError: as `list_files`, or a file cannot be opened.
    """
    return [piece for whole in list_files(sources) for piece in _split(whole)]


def _list_source(source: str) -> Iterator[ImagePiece]:
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        yield _folder_piece(path, source)
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
            f"source {source!r} has no file of a known type",
            where=str(path),
            remedy=f"name folders of images, or files {' '.join(SUFFIXES)}",
        )
    for file in readable:
        place = file.relative_to(root).as_posix()
        yield ImagePiece(root.name or "/", place, str(file), file.stat().st_size)


def _folder_piece(path: Path, source: str) -> ImagePiece:
    endings = tuple(f".{suffix}" for suffix in tar_format.IMAGE_SUFFIXES)
    found = sorted(p for p in path.rglob("*") if p.name.lower().endswith(endings))
    names = tuple(file.relative_to(path).as_posix() for file in found)
    if not names:
        raise InputError(
            f"source {source!r} has no {', '.join(tar_format.IMAGE_SUFFIXES)} file",
            where=str(path),
            remedy="name files in it by a glob, as in 'folder/*.tar'",
        )
    size = sum(file.stat().st_size for file in found if file.is_file())
    return ImagePiece(path.name or "/", "", str(path), size, names=names)


def _split(piece: ImagePiece) -> Iterator[ImagePiece]:
    split = {"folder": _split_folder, "tar": _split_tar, "parquet": _split_parquet}.get(piece.kind)
    with read_errors(piece.path):
        yield from (split or _split_lines)(piece)


def read_errors(path: str) -> AbstractContextManager[None]:
    """Return a context that raises system errors of a source file as `InputError`."""

    def translate(error: Exception) -> InputError | None:
        if not isinstance(error, OSError):
            return None
        message = f"cannot read the source: {error.strerror or error}"
        return InputError(message, where=path, remedy="check its file permissions")

    return as_input_error(translate)


def _split_folder(piece: ImagePiece) -> Iterator[ImagePiece]:
    names: list[str] = []
    size = first = 0
    for name in piece.names:
        path = Path(piece.path, name)
        names.append(name)
        size += path.stat().st_size if path.is_file() else 0
        if size >= PIECE_BYTES or len(names) >= PIECE_RECORDS:
            yield replace(piece, names=tuple(names), size=size, first=first)
            names, size, first = [], 0, first + len(names)
    if names:
        yield replace(piece, names=tuple(names), size=size, first=first)


def _split_tar(piece: ImagePiece) -> Iterator[ImagePiece]:
    """Split between samples. A damaged archive is reported by the reader of its last piece."""
    start = first = number = 0
    with Path(piece.path).open("rb") as stream:
        try:
            members = tar_format.read_members(stream.fileno())
            for number, group in enumerate(tar_format.sample_groups(members)):
                full = group.header - start >= PIECE_BYTES or number - first >= PIECE_RECORDS
                if full and not group.problem:  # a bad member may be in the middle of a sample
                    size = group.header - start
                    yield replace(piece, start=start, end=group.header, size=size, first=first)
                    start, first = group.header, number
        except tar_format.BrokenTar:
            pass
    yield replace(piece, start=start, size=piece.size - start, first=first)


def _split_lines(piece: ImagePiece) -> Iterator[ImagePiece]:
    with Path(piece.path).open("rb") as stream:
        lines = CountedLines(stream)
        if piece.kind == "jsonl":
            yield from _line_ranges(piece, lines, lines)
            return
        rows = csv_rows(lines, piece.kind)
        try:
            names = tuple(next(rows, []))
        except csv.Error:
            yield piece  # its reader reports the error
            return
        yield from _line_ranges(replace(piece, names=names), rows, lines)


def _line_ranges(
    piece: ImagePiece, records: Iterator[object], lines: CountedLines
) -> Iterator[ImagePiece]:
    """Yield ranges of bytes with `PIECE_RECORDS` records each; the last one is open."""
    start, first = lines.bytes_read, 0
    try:
        for number, _ in enumerate(records, 1):
            if number % PIECE_RECORDS == 0:
                end = lines.bytes_read
                yield replace(piece, start=start, end=end, size=end - start, first=first)
                start, first = end, number
    except csv.Error:
        pass
    if start < piece.size or not first:
        yield replace(piece, start=start, size=piece.size - start, first=first)


class CountedLines:
    """Iterator over the lines of a file as text, with the number of bytes read so far."""

    def __init__(self, stream: IO[bytes], end: int | None = None) -> None:
        self._stream = stream
        self._end = end
        self.bytes_read = stream.tell()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._end is not None and self.bytes_read >= self._end:
            raise StopIteration
        line = self._stream.readline()
        if not line:
            raise StopIteration
        first = self.bytes_read == 0
        self.bytes_read += len(line)
        return line.decode("utf-8-sig" if first else "utf-8", "replace")


def csv_rows(lines: Iterator[str], kind: str) -> Iterator[list[str]]:
    """Return an iterator over the rows of a csv or tsv file."""
    csv.field_size_limit(MAX_FIELD)
    return csv.reader(lines, delimiter="\t" if kind == "tsv" else ",")


def is_corruption(error: Exception) -> bool:
    """Return true if an error of pyarrow is about a file's content: a system error has a number."""
    return not isinstance(error, OSError) or error.errno is None


def _split_parquet(piece: ImagePiece) -> Iterator[ImagePiece]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.ParquetFile(piece.path).metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        if not is_corruption(error):
            raise
        yield piece  # its reader reports the error
        return
    for start in range(0, rows, PIECE_RECORDS):
        end = min(rows, start + PIECE_RECORDS)
        size = piece.size * (end - start) // rows
        yield replace(piece, start=start, end=end, size=size, first=start)
