"""Files to raw documents, by suffix. A reader is a generator from a file to `RawDocument`s.

A record that cannot be read comes out marked as broken: it is counted and kept aside, and stops
nothing. A file that is damaged or cut short gives what it held up to there, then `BrokenFile`; one
that cannot be opened at all is an `InputError`.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.errors import InputError
from stages.text.sources import fsspec_files
from stages.text.sources.source_listing import Cut, SourceFile

if TYPE_CHECKING:
    import csv

    import pyarrow.parquet as pq


LONGEST_FIELD = 1 << 30  # characters of a csv field


@dataclass(frozen=True, slots=True)
class RawDocument:
    """A text as it was found."""

    text: str
    meta: dict[str, Any] = field(default_factory=dict)
    broken: str = ""
    """Why the record could not be read; empty for one that could."""


class BrokenFile(InputError):
    """A file cannot be read on: it is damaged, or cut short."""


@dataclass(frozen=True, slots=True)
class RecordColumns:
    """The fields of records that are read."""

    text: str
    meta: tuple[str, ...] = ()
    """Those that go along with the text; a record may lack them."""

    def document(self, record: Mapping[str, Any], place: dict[str, Any]) -> RawDocument:
        """A record as a document; broken if its text is none."""
        text = record.get(self.text)
        told = {name: record[name] for name in self.meta if record.get(name) is not None}
        meta = {**json.loads(json.dumps(told, default=str)), **place} if told else place
        if not isinstance(text, str):
            return RawDocument("", meta, "broken.text_column")
        return RawDocument(text, meta)


Reader = Callable[[SourceFile, RecordColumns], Iterator[RawDocument]]


def read(
    file: SourceFile, text_column: str = "text", meta_columns: tuple[str, ...] = ()
) -> Iterator[RawDocument]:
    """The documents of a file in order, or those of the piece that it is cut to.

    Raises:
        BrokenFile: the file is damaged or cut short.
        InputError: it is missing, may not be read, or has no such column.
    """
    with refusals_told(file):
        yield from _reader(file)(file, RecordColumns(text_column, meta_columns))


def _reader(file: SourceFile) -> Reader:
    if file.is_dataset:
        return _dataset
    return next(_READERS[suffix] for suffix in _READERS if file.place.lower().endswith(suffix))


@contextmanager
def refusals_told(file: SourceFile) -> Iterator[None]:
    """What keeps a file from being read, as the user's error.

    Raises:
        BrokenFile: the file is damaged or cut short.
        InputError: it is missing, or may not be read.
    """
    try:
        yield
    except Exception as error:  # each storage of fsspec has errors of its own; unknown ones go on
        if file.is_remote and fsspec_files.is_refusal(error):
            fsspec_files.refuse(file.path, error)
        if not isinstance(error, OSError | EOFError | zlib.error):
            raise
        refused = isinstance(error, OSError) and error.errno is not None
        refused = refused or isinstance(error, ConnectionError)
        raise (InputError if refused else BrokenFile)(
            f"cannot read the source: {error}",
            where=file.display_path,
            remedy="mend or leave out the file",
        ) from error


def _whole(file: SourceFile, columns: RecordColumns) -> Iterator[RawDocument]:
    yield RawDocument(_decode(_bytes(file)))


def _python(file: SourceFile, columns: RecordColumns) -> Iterator[RawDocument]:
    """A module's docstrings as documents of a few pages; those of the objects that evaluation asks
    about are left out."""
    from stages.text.python_docs.docstrings import documented_objects, module_documents
    from stages.text.python_docs.installed_files import module_name
    from stages.text.python_docs.question_answers import is_held_out

    objects = documented_objects(
        Path(file.path).read_bytes(), module_name(file.place.partition("/")[2])
    )
    for text in module_documents([item for item in objects if not is_held_out(item.doc)]):
        yield RawDocument(text)


def _metadata(file: SourceFile, columns: RecordColumns) -> Iterator[RawDocument]:
    """The description of a distribution: what follows its headers."""
    _, _, body = _decode(Path(file.path).read_bytes()).partition("\n\n")
    if body.strip():
        yield RawDocument(body)


def _jsonl(file: SourceFile, columns: RecordColumns) -> Iterator[RawDocument]:
    import orjson

    part = file.cut or Cut(0, sys.maxsize, 0, 0)
    with open_file(file) as stream:
        if part.start:
            stream.seek(part.start)
        for number, line in enumerate(_until(stream, part.end - part.start), part.lines + 1):
            if not line.strip():
                continue
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                yield RawDocument(_decode(line), {"line": number}, "broken.json")
                continue
            found = columns.document(record if isinstance(record, dict) else {}, {"line": number})
            yield replace(found, text=_decode(line)) if found.broken else found


def _until(stream: IO[bytes], size: int) -> Iterator[bytes]:
    """The lines that lie in the next `size` bytes; the end of these is the end of one."""
    for line in stream:
        yield line
        size -= len(line)
        if size <= 0:
            return


def _parquet(file: SourceFile, columns: RecordColumns) -> Iterator[RawDocument]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_file(file) as stream, pq.ParquetFile(stream) as part:
            yield from _rows(file, part, columns)
    except pa.ArrowInvalid as error:
        raise BrokenFile(f"not a parquet file: {error}", where=file.display_path) from error


def _rows(file: SourceFile, part: pq.ParquetFile, columns: RecordColumns) -> Iterator[RawDocument]:
    import pyarrow as pa

    names = part.schema_arrow.names
    if columns.text not in names:
        raise InputError(
            f"no column {columns.text!r}",
            where=file.display_path,
            remedy=f"set text_column to one of {', '.join(names)}",
        )
    row = file.cut.lines if file.cut else 0
    groups = range(file.cut.start, file.cut.end) if file.cut else range(part.num_row_groups)
    wanted = [name for name in (columns.text, *columns.meta) if name in names]
    for batch in part.iter_batches(1024, groups, columns=wanted):
        text = batch.schema.get_field_index(columns.text)
        batch = batch.set_column(text, columns.text, batch.column(text).cast(pa.string()))
        for record in batch.to_pylist():
            yield columns.document(record, {"row": row})
            row += 1


def _dataset(file: SourceFile, columns: RecordColumns) -> Iterator[RawDocument]:
    from stages.text.sources.hf_datasets import dataset_rows

    assert file.cut is not None
    try:
        for row, record in enumerate(
            dataset_rows(file, (columns.text, *columns.meta)), file.cut.records
        ):
            yield columns.document(record, {"row": row})
    except ValueError as error:  # Arrow's, JSON's, of an encoding, of columns of other types
        raise BrokenFile(f"damaged: {error}", where=file.path) from error


_NO_TEXT = re.compile("[\0-\x08\x0e-\x1f\x7f]")


def _csv(file: SourceFile, columns: RecordColumns) -> Iterator[RawDocument]:
    import csv

    csv.field_size_limit(LONGEST_FIELD)
    with open_file(file) as stream:
        rows = csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", "replace", newline=""))
        try:
            yield from _csv_rows(rows, file, columns)
        except csv.Error as error:
            raise BrokenFile(f"line {rows.line_num}: {error}", where=file.display_path) from error


def _csv_rows(
    rows: csv.DictReader[str], file: SourceFile, columns: RecordColumns
) -> Iterator[RawDocument]:
    names = [str(name) for name in rows.fieldnames or ()]
    if columns.text not in names:
        header = "".join(names)
        below = "".join(str(value) for row in islice(rows, 8) for value in row.values())
        if not header.isprintable() or ("\ufffd" in header and _NO_TEXT.search(below)):
            raise BrokenFile("not a csv file: it holds no text", where=file.display_path)
        raise InputError(
            f"no column {columns.text!r}",
            where=file.display_path,
            remedy=f"set text_column to one of {', '.join(names) or 'a header line'}",
        )
    for row in rows:
        found = columns.document(row, {"line": rows.line_num})
        whole = not found.broken and None not in row
        yield found if whole else replace(found, broken="broken.columns")


def _html(file: SourceFile, columns: RecordColumns) -> Iterator[RawDocument]:
    from stages.text.sources.html_extraction import page_text

    yield RawDocument(page_text(_bytes(file)))


def _warc(file: SourceFile, columns: RecordColumns) -> Iterator[RawDocument]:
    from stages.text.sources.html_extraction import pages

    with open_file(file) as stream:
        for text, meta in pages(stream):
            yield RawDocument(text, meta)


_READERS: dict[str, Reader] = {
    ".txt": _whole,
    ".md": _whole,
    ".rst": _whole,
    ".py": _python,
    ".dist-info/metadata": _metadata,
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl,
    ".jsonl.zst": _jsonl,
    ".parquet": _parquet,
    ".csv": _csv,
    ".csv.gz": _csv,
    ".csv.zst": _csv,
    ".html": _html,
    ".htm": _html,
    ".warc": _warc,
    ".warc.gz": _warc,
    ".warc.wet": _warc,
    ".warc.wet.gz": _warc,
}


@contextmanager
def open_file(file: SourceFile) -> Iterator[IO[bytes]]:
    """What the file holds, decompressed."""
    with (
        fsspec_files.open_url(file.path) if file.is_remote else Path(file.path).open("rb") as stream
    ):
        name = file.place.lower()
        if name.endswith(".gz"):
            yield io.BufferedReader(gzip.GzipFile(fileobj=stream))
        elif name.endswith(".zst"):
            import pyarrow as pa

            # Unlike zstandard's own reader, Arrow's says when the file is cut short.
            yield io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stream), "zstd"))
        else:
            yield stream


def _bytes(file: SourceFile) -> bytes:
    with open_file(file) as stream:
        return stream.read()


def _decode(data: bytes) -> str:
    """UTF-8 if it is, else the most likely encoding (ftfy's guess by byte-order mark and bytes)."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        import ftfy

        try:
            return str(ftfy.guess_bytes(data)[0])
        except UnicodeDecodeError:
            return data.decode("utf-8", "replace")
