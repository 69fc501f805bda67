"""The first phase of `conversations` and `rankings`: every row of the sources as JSON.

    annotate   a shard of files -> a table with a row per record: what it holds, or why it is left
               out (`stages.curation.annotation` runs it)
    write      the tables in order -> splits, copies, the artifact, dropped/

The format of a file is detected once, from its first readable rows, also where a task reads a later
part of the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from stages.chat.conversion.control_text import control_tokens
from stages.chat.conversion.prompt_split import named_split
from stages.chat.conversion.row_reader import RowReader
from stages.chat.row_formats.format_registry import detect_format, find_format
from stages.chat.row_formats.row_format import RowFormat
from stages.chat.row_options import RowOptions
from stages.chat.turns import Row, RowError
from stages.curation.annotation import Annotator
from stages.curation.broken_files import BrokenFile
from stages.data import parquet_parts
from stages.data.formats.encoded_lines import readable
from stages.data.formats.json_values import as_json
from stages.data.formats.surrogates import replace_surrogates
from stages.data.hashing import hash128_hex
from stages.text.sources.record_readers import AllFields, RawRecord, read_records
from stages.text.sources.source_file import SourceFile

UNREADABLE = "unreadable"
"""Reason of rows and files that cannot be read; the others are left out because of what they
hold."""
DETECTION_ROWS = 64
"""Readable rows at the beginning of a file that are tried for a known format."""
EXCERPT_CHARACTERS = 2_000


@dataclass(frozen=True, slots=True)
class FormattedRecord:
    """A record with the format of its file."""

    record: RawRecord
    row_format: RowFormat | None


@dataclass(frozen=True)
class RowAnnotator(Annotator[SourceFile, FormattedRecord]):
    """Reader of rows in any format, without limits and splits."""

    reader: RowReader[Any]
    options: RowOptions
    format_name: str | None = None
    meta_columns: tuple[str, ...] = ()
    split_field: str | None = None

    payload_column: ClassVar[str] = "items"
    schema: ClassVar[pa.Schema] = parquet_parts.versioned_schema(
        pa.schema(
            [
                *((name, pa.string()) for name in ("id", "file", "at", "format", "split")),
                ("items", pa.string()),
                ("excerpt", pa.string()),
                ("origin", pa.int64()),
            ]
        ),
        "AnnotatedRows",
        1,
    )

    def read(self, piece: SourceFile) -> Iterator[FormattedRecord]:
        """Yield the records of a file in order, each with the format of the file."""
        row_format = self._file_format(piece)
        for record in read_records(piece, AllFields()):
            yield FormattedRecord(record, row_format)

    def _file_format(self, piece: SourceFile) -> RowFormat | None:
        """Return the format of a file; None if its first rows cannot be read.

        Raises:
            InputError: its first readable rows are of no known format.
        """
        if self.format_name:
            return find_format(self.format_name, self.reader.wanted)
        whole = piece if piece.is_dataset else replace(piece, part=None)
        refused: InputError | None = None
        with suppress(BrokenFile):
            for record in islice(read_records(whole, AllFields()), DETECTION_ROWS):
                if record.broken or not record.values:
                    continue
                try:
                    return detect_format(_json_values(record), self.reader.wanted, self.options)
                except InputError as error:
                    refused = refused or error
                except RowError:
                    continue
        if refused:
            raise InputError(refused.message, where=piece.display_path, remedy=refused.remedy)
        return None

    def broken_record(self, piece: SourceFile, error: BrokenFile) -> FormattedRecord:
        """Return the record that stands for the unreadable rest of a file."""
        return FormattedRecord(RawRecord({}, {"error": error.message}, "broken.file"), None)

    def annotate(self, piece: SourceFile, number: int, record: FormattedRecord) -> dict[str, Any]:
        """Return the row of a record in the annotation table."""
        raw, found = record.record, record.row_format
        at = " ".join(f"{key} {raw.place[key]}" for key in ("line", "row") if key in raw.place)
        file, split, excerpt = f"{piece.source}/{piece.place}", None, ""
        try:
            values = self._values(raw, found)
            if self.split_field:
                split = named_split(self.split_field, values.get(self.split_field))
            items = list(self._items(Row(values, file, at), found))
            if not items:
                raise RowError(self.reader.nothing, "", f"the row holds no {self.reader.noun}")
        except RowError as error:
            items = [_refusal(error, control_tokens(_strings(raw.values)))]
        if any("refused" in item for item in items):
            excerpt = _excerpt(raw)
        return {
            "id": hash128_hex(piece.source, piece.place, str(number)),
            "file": file,
            "at": at,
            "format": found.name if found else "",
            "split": split,
            "items": json.dumps(items),
            "excerpt": excerpt,
            "origin": piece.origin,
        }

    def _values(self, raw: RawRecord, row_format: RowFormat | None) -> dict[str, Any]:
        """Return the fields of a record as JSON values.

        Raises:
            RowError: it cannot be read.
        """
        if raw.broken:
            rule = raw.broken.removeprefix("broken.")
            raise RowError(UNREADABLE, "", raw.place.get("error", f"the {rule} is damaged"))
        if not raw.values:
            raise RowError(UNREADABLE, "", "the record has no fields")
        if row_format is None:
            raise RowError(UNREADABLE, "", "the first rows of the file are unreadable: no format")
        return _json_values(raw)

    def _items(self, row: Row, row_format: RowFormat | None) -> Iterator[dict[str, Any]]:
        """Yield what a row holds, each item stored or refused."""
        assert row_format is not None
        kept = {name: row.values[name] for name in self.meta_columns if name in row.values}
        for found in self.reader.find(row_format, row, self.options):
            try:
                checked, changes = self.reader.check(found, self.options)
            except RowError as error:
                texts = self.reader.texts(self.reader.store(found))
                yield _refusal(error, control_tokens(texts))
                continue
            data = self.reader.store(checked)
            data["meta"] = {**data["meta"], **kept, "place": f"{row.source} {row.place}".strip()}
            tokens = control_tokens(self.reader.texts(data))
            yield {"data": data, "changes": list(changes), "control": tokens}


def _json_values(record: RawRecord) -> dict[str, Any]:
    """Return the fields of a record, without what JSON lacks.

    Raises:
        RowError: a field cannot be read.
    """
    values = {}
    for name, value in record.values.items():
        try:
            values[str(as_json(name))] = as_json(value)
        except ValueError as error:
            raise RowError(UNREADABLE, name, str(error)) from error
    return values


def _refusal(error: RowError, control: list[str]) -> dict[str, Any]:
    return {"refused": [error.reason, error.field, error.detail], "control": control}


def _strings(value: Any) -> Iterator[str]:
    """Yield the texts in a value, at any depth."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            waiting += reversed(list(item.values()))
        elif isinstance(item, list):
            waiting += reversed(item)


def _excerpt(record: RawRecord) -> str:
    """Return the beginning of a record as stored."""
    text = readable(record.raw) if record.raw else _as_text(record.values)
    return replace_surrogates(text[:EXCERPT_CHARACTERS])


def _as_text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, default=str) if values else ""


def annotated_rows(tables: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield the rows of annotation tables in order, with their items as lists."""
    for table in tables:
        for batch in pq.ParquetFile(table).iter_batches(256):
            for row in batch.to_pylist():
                yield {**row, "items": json.loads(row["items"])}
