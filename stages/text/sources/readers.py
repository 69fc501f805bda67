"""Readers of text files by their endings: generators from a file to `RawDocument`s.

A record that cannot be read is yielded marked as broken: it is counted and stored with the dropped
documents, and reading continues. A damaged or truncated file yields the records before the damage,
then raises `BrokenFile`; a file that cannot be opened at all raises `InputError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.data.formats.encoded_lines import readable
from stages.data.formats.json_values import as_json
from stages.data.formats.surrogates import replace_surrogates
from stages.data.formats.text_encoding import UndecodableText, decode_text
from stages.text.sources.file_formats import file_format
from stages.text.sources.file_io import open_file, read_errors
from stages.text.sources.page_blocks import PageTooComplex
from stages.text.sources.record_readers import RawRecord, RecordFields, has_records, read_records
from stages.text.sources.source_file import SourceFile


@dataclass(frozen=True, slots=True)
class RawDocument:
    """A text as stored in a source."""

    text: str
    meta: dict[str, Any] = field(default_factory=dict)
    broken: str = ""
    """Reason why the record could not be read; empty for a readable one."""


def read(
    file: SourceFile, text_column: str = "text", meta_columns: tuple[str, ...] = ()
) -> Iterator[RawDocument]:
    """Yield the documents of a file, or of its part, in order.

    Raises:
        BrokenFile: the file is damaged or truncated.
        InputError: it is missing, may not be read, or has no such column.
    """
    if has_records(file):
        fields = RecordFields((text_column,), meta_columns)
        for record in read_records(file, fields):
            yield _document(record, text_column, meta_columns)
        return
    with read_errors(file):
        yield from _reader(file.place)(file)


def _document(record: RawRecord, text_column: str, meta_columns: tuple[str, ...]) -> RawDocument:
    """Return the document of a record; it is broken if its field of text holds none."""
    if record.broken:
        return RawDocument(readable(record.raw), record.place, record.broken)
    try:
        name = text_column
        texts = field_texts(record.values.get(name))
        meta = {}
        for name in meta_columns:
            if (value := as_json(record.values.get(name))) is not None:
                meta[name] = value
    except ValueError as error:
        rule = "broken.encoding" if isinstance(error, UnicodeDecodeError) else "broken.value"
        return RawDocument(
            readable(record.raw), {**record.place, "error": f"{name}: {error}"}, rule
        )
    if texts is None:
        return RawDocument(readable(record.raw), meta | record.place, "broken.text_column")
    return RawDocument("\n".join(texts), meta | record.place)


def field_texts(value: Any) -> list[str] | None:
    """Return the texts in a field: itself, or those of a list; None if it holds anything else.

    Raises:
        UnicodeDecodeError: bytes are not UTF-8.
    """
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str):
        return [replace_surrogates(value)]
    if not isinstance(value, list):
        return None
    texts = [field_texts(item) for item in value if not isinstance(item, list)]
    whole = len(texts) == len(value) and None not in texts
    return [text for item in texts if item for text in item] if whole else None


def _read_text(file: SourceFile) -> Iterator[RawDocument]:
    yield _decoded_document(_read_bytes(file), decode_text)


def _read_python(file: SourceFile) -> Iterator[RawDocument]:
    """Yield a module's docstrings as documents of a few pages, without the held-out objects."""
    from stages.text.python_docs.docstrings import documented_objects, module_documents
    from stages.text.python_docs.holdout import is_held_out
    from stages.text.python_docs.installed_files import module_name

    objects = documented_objects(
        Path(file.path).read_bytes(), module_name(file.place.partition("/")[2])
    )
    for text in module_documents([item for item in objects if not is_held_out(item.doc)]):
        yield RawDocument(text)


def _read_metadata(file: SourceFile) -> Iterator[RawDocument]:
    """Yield the description of a distribution, which follows the headers of its METADATA."""
    _, _, body = decode_text(Path(file.path).read_bytes()).partition("\n\n")
    if body.strip():
        yield RawDocument(body)


def _read_html(file: SourceFile) -> Iterator[RawDocument]:
    from stages.text.sources.html_extraction import page_text

    yield _decoded_document(_read_bytes(file), page_text)


def _read_warc(file: SourceFile) -> Iterator[RawDocument]:
    from stages.text.sources.warc_archive import read_archive

    with open_file(file) as stream:
        for found in read_archive(stream):
            yield RawDocument(found.text, found.origin, found.dropped)


_TEXT_READERS: dict[str, Callable[[SourceFile], Iterator[RawDocument]]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".rst": _read_text,
    ".html": _read_html,
    ".htm": _read_html,
    ".warc": _read_warc,
    ".wet": _read_warc,
}


def _reader(name: str) -> Callable[[SourceFile], Iterator[RawDocument]]:
    """Return the reader of a file without records; those of `python:docs` have no format."""
    if known := file_format(name):
        return _TEXT_READERS[known]
    return _read_python if name.endswith(".py") else _read_metadata


def _read_bytes(file: SourceFile) -> bytes:
    with open_file(file) as stream:
        return stream.read()


def _decoded_document(data: bytes, decode: Callable[[bytes], str]) -> RawDocument:
    try:
        return RawDocument(decode(data))
    except UndecodableText as error:
        return RawDocument(error.text, {"error": str(error)}, "broken.encoding")
    except PageTooComplex as error:
        return RawDocument("", {"error": str(error)}, "broken.html")
