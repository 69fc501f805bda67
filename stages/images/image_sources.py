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
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError
from stages.curation.folder_listing import LeftOut, describe_left_out, list_folder, list_glob
from stages.curation.source_piece import SourcePiece, list_pieces
from stages.data import tar_format
from stages.data.input_errors import as_input_error

if TYPE_CHECKING:
    from stages.data.formats.encoded_lines import EncodedLines

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
SUFFIXES = (*MANIFEST_SUFFIXES, ".tar")
SIDECARS = (".txt", ".json")
"""Suffixes of the captions and the metadata of an image in a folder, or the same in capitals."""
PIECE_BYTES = 16 << 20  # of images: a task takes seconds, so that a kill loses only seconds
PIECE_RECORDS = 256  # the rows of a manifest do not give the sizes of its images


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
    """Images of a folder, or columns of a csv file whose header is before the piece."""
    encoding: str = ""
    """Python codec of a csv, tsv or jsonl file; empty to find it."""

    @property
    def first_record(self) -> int:
        """Number of records of the file before the piece."""
        return self.first

    @property
    def kind(self) -> str:
        """One of `folder`, `tar`, `csv`, `tsv`, `jsonl` and `parquet`."""
        return Path(self.path).suffix.lower().removeprefix(".") if self.place else "folder"


def list_files(sources: Sequence[str], left_out: LeftOut | None = None) -> list[ImagePiece]:
    """Return the files and folders of the sources, each as one piece, in a fixed order.

    Args:
        sources: files, folders and globs.
        left_out: counts the files that are not read.

    Raises:
        InputError: a source does not exist, or has no file of a known type.
    """
    unread = LeftOut() if left_out is None else left_out
    return list_pieces(sources, lambda source: _list_source(source, unread))


def split_files(files: Iterable[ImagePiece]) -> list[ImagePiece]:
    """Return files in pieces of about `PIECE_BYTES` or `PIECE_RECORDS`, whichever is less.

    Raises:
        InputError: a file cannot be opened.
    """
    return [piece for whole in files for piece in _split(whole)]


def _list_source(source: str, left_out: LeftOut) -> Iterator[ImagePiece]:
    path = Path(source).expanduser().absolute()
    unread = LeftOut()
    if path.is_dir():
        yield _folder_piece(path, source, unread)
        left_out.update(unread)
        return
    if path.is_file():
        root, found = path.parent, [path] if _is_file_of_images(path.name) else []
    elif glob.has_magic(source):
        root = next(p for p in path.parents if not glob.has_magic(str(p)))
        found = list_glob(root, str(path.relative_to(root)), _is_file_of_images, unread)
    else:
        remedy = "check the path; name local files, folders or globs"
        raise InputError(f"source {source!r} does not exist", where=str(path), remedy=remedy)
    if not found:
        raise InputError(
            f"source {source!r} has no file of a known type{_parenthesis(unread)}",
            where=str(path),
            remedy=f"name folders of images, or files {' '.join(SUFFIXES)}",
        )
    left_out.update(unread)
    for file in found:
        place = file.relative_to(root).as_posix()
        yield ImagePiece(root.name or "/", place, str(file), file.stat().st_size)


def _is_file_of_images(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _folder_piece(path: Path, source: str, unread: LeftOut) -> ImagePiece:
    images = tuple(f".{suffix}" for suffix in tar_format.IMAGE_SUFFIXES)
    sidecars = (*SIDECARS, *map(str.upper, SIDECARS))

    def is_readable(name: str) -> bool:
        return name.lower().endswith(images) or name.endswith(sidecars)

    listed = list_folder(path, is_readable, unread)
    found = [file for file in listed if file.name.lower().endswith(images)]
    described = {file.with_suffix("") for file in found}
    for file in listed:
        if file.suffix.lower() in SIDECARS and file.with_suffix("") not in described:
            unread[f"files {file.suffix.lower()} without an image of their name"] += 1
    if not found:
        raise InputError(
            f"source {source!r} has no {', '.join(tar_format.IMAGE_SUFFIXES)} file"
            f"{_parenthesis(unread)}",
            where=str(path),
            remedy="name files in it by a glob, as in 'folder/*.tar'",
        )
    names = tuple(file.relative_to(path).as_posix() for file in found)
    size = sum(file.stat().st_size for file in found)
    return ImagePiece(path.name or "/", "", str(path), size, names=names)


def _parenthesis(unread: LeftOut) -> str:
    return f" ({describe_left_out(unread)})" if unread else ""


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


def delimiter_of(piece: ImagePiece) -> str:
    """Return the delimiter of a csv or tsv file."""
    return "\t" if piece.kind == "tsv" else ","


def _split_lines(piece: ImagePiece) -> Iterator[ImagePiece]:
    from stages.data.formats.csv_table import CsvTable
    from stages.data.formats.encoded_lines import EncodedLines

    with Path(piece.path).open("rb") as stream:
        lines = EncodedLines(stream)
        if piece.kind == "jsonl":
            ends = (lines.bytes_read for _ in lines)
            cuts = [(0, 0), *((end, n) for n, end in enumerate(ends, 1) if n % PIECE_RECORDS == 0)]
            yield from _line_ranges(piece, cuts, lines.encoding)
            return
        starts = _LineStarts(lines)
        try:
            table = CsvTable(starts, delimiter_of(piece))
        except csv.Error:
            yield piece  # its reader reports the error
            return
        cuts, before = [(lines.bytes_read, 0)], ""
        for number, row in enumerate(table):
            start = starts.positions[row.line - 1]
            if number == 0 and start < 0:  # the header and the rows are one line of the file
                yield piece
                return
            if number - cuts[-1][1] >= PIECE_RECORDS and start >= 0 and not before:
                cuts.append((start, number))
            before = row.broken
    yield from _line_ranges(replace(piece, names=tuple(table.columns)), cuts, lines.encoding)


class _LineStarts:
    """Iterator over the lines of a text that stores where each one begins."""

    def __init__(self, lines: EncodedLines) -> None:
        self._lines = lines
        self.positions = array("q")
        """First byte of each line; -1 for a line within a longer one of the file."""

    def __iter__(self) -> Iterator[str]:
        end = -1
        start = self._lines.bytes_read
        for line in self._lines.decoded():
            self.positions.append(-1 if self._lines.bytes_read == end else start)
            start = end = self._lines.bytes_read
            yield line


def _line_ranges(
    piece: ImagePiece, cuts: Sequence[tuple[int, int]], encoding: str
) -> Iterator[ImagePiece]:
    """Yield a piece per cut, which is its first byte and the records before it."""
    for (start, first), (end, _) in zip(cuts, [*cuts[1:], (piece.size, 0)], strict=True):
        if start < end or not first:
            until = None if end == piece.size else end
            yield replace(
                piece, start=start, end=until, size=end - start, first=first, encoding=encoding
            )


def is_corruption(error: Exception) -> bool:
    """Return true if an error of pyarrow is about a file's content: a system error has a number."""
    return not isinstance(error, OSError) or error.errno is None


def _split_parquet(piece: ImagePiece) -> Iterator[ImagePiece]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.ParquetFile(piece.path).metadata.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        if not is_corruption(error):
            raise
        yield piece  # its reader reports the error
        return
    for start in range(0, rows, PIECE_RECORDS):
        end = min(rows, start + PIECE_RECORDS)
        size = piece.size * (end - start) // rows
        yield replace(piece, start=start, end=end, size=size, first=start)
