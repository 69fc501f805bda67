"""Readers of text files by suffix: generators from a file to `RawDocument`s.

A record that cannot be read is yielded marked as broken: it is counted and stored with the dropped
documents, and reading continues. A damaged or truncated file yields the records before the damage,
then raises `BrokenFile`; a file that cannot be opened at all raises `InputError`.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.errors import InputError
from stages.curation.broken_files import BrokenFile
from stages.text.sources.file_io import open_file, read_errors
from stages.text.sources.source_file import FilePart, SourceFile

if TYPE_CHECKING:
    import csv

    import pyarrow.parquet as pq


MAX_FIELD = 1 << 30  # characters of a csv field


@dataclass(frozen=True, slots=True)
class RawDocument:
    """A text as stored in a source."""

    text: str
    meta: dict[str, Any] = field(default_factory=dict)
    broken: str = ""
    """Reason why the record could not be read; empty for a readable one."""


@dataclass(frozen=True, slots=True)
class RecordColumns:
    """Fields of a record to read."""

    text: str
    meta: tuple[str, ...] = ()
    """Fields kept in the metadata; a record may lack them."""

    def document(self, record: Mapping[str, Any], place: dict[str, Any]) -> RawDocument:
        """Build a document from a record; it is broken if its text is not a string."""
        text = record.get(self.text)
        kept = {name: record[name] for name in self.meta if record.get(name) is not None}
        meta = {**json.loads(json.dumps(kept, default=str)), **place} if kept else place
        if not isinstance(text, str):
            return RawDocument("", meta, "broken.text_column")
        return RawDocument(text, meta)


Reader = Callable[[SourceFile, RecordColumns], Iterator[RawDocument]]


def read(
    file: SourceFile, text_column: str = "text", meta_columns: tuple[str, ...] = ()
) -> Iterator[RawDocument]:
    """Yield the documents of a file, or of its part, in order.

    Raises:
        BrokenFile: the file is damaged or truncated.
        InputError: it is missing, may not be read, or has no such column.
    """
    columns = RecordColumns(text_column, meta_columns)
    name = file.place.lower()
    with read_errors(file):
        if file.is_dataset:
            yield from _read_dataset(file, columns)
        else:
            reader = next(_READERS[suffix] for suffix in _READERS if name.endswith(suffix))
            yield from reader(file, columns)


def _read_text(file: SourceFile, columns: RecordColumns) -> Iterator[RawDocument]:
    yield RawDocument(_decode(_read_bytes(file)))


def _read_python(file: SourceFile, columns: RecordColumns) -> Iterator[RawDocument]:
    """Yield a module's docstrings as documents of a few pages, without the held-out objects."""
    from stages.text.python_docs.docstrings import documented_objects, module_documents
    from stages.text.python_docs.holdout import is_held_out
    from stages.text.python_docs.installed_files import module_name

    objects = documented_objects(
        Path(file.path).read_bytes(), module_name(file.place.partition("/")[2])
    )
    for text in module_documents([item for item in objects if not is_held_out(item.doc)]):
        yield RawDocument(text)


def _read_metadata(file: SourceFile, columns: RecordColumns) -> Iterator[RawDocument]:
    """Yield the description of a distribution, which follows the headers of its METADATA."""
    _, _, body = _decode(Path(file.path).read_bytes()).partition("\n\n")
    if body.strip():
        yield RawDocument(body)


def _read_jsonl(file: SourceFile, columns: RecordColumns) -> Iterator[RawDocument]:
    import orjson

    part = file.part or FilePart(0, sys.maxsize, 0, 0)
    with open_file(file) as stream:
        if part.start:
            stream.seek(part.start)
        for number, line in enumerate(
            _lines_within(stream, part.end - part.start), part.lines_before + 1
        ):
            if not line.strip():
                continue
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                yield RawDocument(_decode(line), {"line": number}, "broken.json")
                continue
            found = columns.document(record if isinstance(record, dict) else {}, {"line": number})
            yield replace(found, text=_decode(line)) if found.broken else found


def _lines_within(stream: IO[bytes], size: int) -> Iterator[bytes]:
    """Yield the lines of the next `size` bytes, which end with a line."""
    for line in stream:
        yield line
        size -= len(line)
        if size <= 0:
            return


def _read_parquet(file: SourceFile, columns: RecordColumns) -> Iterator[RawDocument]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_file(file) as stream, pq.ParquetFile(stream) as table:
            yield from _parquet_rows(file, table, columns)
    except pa.ArrowInvalid as error:
        raise BrokenFile(f"not a parquet file: {error}", where=file.display_path) from error


def _parquet_rows(
    file: SourceFile, table: pq.ParquetFile, columns: RecordColumns
) -> Iterator[RawDocument]:
    import pyarrow as pa

    names = table.schema_arrow.names
    if columns.text not in names:
        raise InputError(
            f"no column {columns.text!r}",
            where=file.display_path,
            remedy=f"set text_column to one of {', '.join(names)}",
        )
    row = file.part.lines_before if file.part else 0
    groups = range(file.part.start, file.part.end) if file.part else range(table.num_row_groups)
    wanted = [name for name in (columns.text, *columns.meta) if name in names]
    for batch in table.iter_batches(1024, groups, columns=wanted):
        text = batch.schema.get_field_index(columns.text)
        batch = batch.set_column(text, columns.text, batch.column(text).cast(pa.string()))
        for record in batch.to_pylist():
            yield columns.document(record, {"row": row})
            row += 1


def _read_dataset(file: SourceFile, columns: RecordColumns) -> Iterator[RawDocument]:
    from stages.text.sources.hf_datasets import dataset_rows

    assert file.part is not None
    try:
        for row, record in enumerate(
            dataset_rows(file, (columns.text, *columns.meta)), file.first_record
        ):
            yield columns.document(record, {"row": row})
    except ValueError as error:  # Arrow's, JSON's, of an encoding, of columns of other types
        raise BrokenFile(f"damaged: {error}", where=file.path) from error


_BINARY = re.compile("[\0-\x08\x0e-\x1f\x7f]")


def _read_csv(file: SourceFile, columns: RecordColumns) -> Iterator[RawDocument]:
    import csv

    csv.field_size_limit(MAX_FIELD)
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
        if not header.isprintable() or ("\ufffd" in header and _BINARY.search(below)):
            raise BrokenFile("not a csv file: its content is binary", where=file.display_path)
        raise InputError(
            f"no column {columns.text!r}",
            where=file.display_path,
            remedy=f"set text_column to one of {', '.join(names) or 'a header line'}",
        )
    for row in rows:
        found = columns.document(row, {"line": rows.line_num})
        whole = not found.broken and None not in row
        yield found if whole else replace(found, broken="broken.columns")


def _read_html(file: SourceFile, columns: RecordColumns) -> Iterator[RawDocument]:
    from stages.text.sources.html_extraction import page_text

    yield RawDocument(page_text(_read_bytes(file)))


def _read_warc(file: SourceFile, columns: RecordColumns) -> Iterator[RawDocument]:
    from stages.text.sources.html_extraction import read_archive

    with open_file(file) as stream:
        for text, meta in read_archive(stream):
            yield RawDocument(text, meta)


_READERS: dict[str, Reader] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".rst": _read_text,
    ".py": _read_python,
    ".dist-info/metadata": _read_metadata,
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".jsonl.zst": _read_jsonl,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".csv.gz": _read_csv,
    ".csv.zst": _read_csv,
    ".html": _read_html,
    ".htm": _read_html,
    ".warc": _read_warc,
    ".warc.gz": _read_warc,
    ".warc.wet": _read_warc,
    ".warc.wet.gz": _read_warc,
}


def _read_bytes(file: SourceFile) -> bytes:
    with open_file(file) as stream:
        return stream.read()


def _decode(data: bytes) -> str:
    """Decode UTF-8, or else the most likely encoding by byte-order mark and bytes (ftfy)."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        import ftfy

        try:
            return str(ftfy.guess_bytes(data)[0])
        except UnicodeDecodeError:
            return data.decode("utf-8", "replace")
