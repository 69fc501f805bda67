"""Records with fields, as stored in jsonl, json, csv, tsv and parquet files and in datasets.

A record that cannot be read costs no other one: it is yielded as broken, with the reason. The
fields keep the types of their format; `readers` makes documents of them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError
from stages.curation.broken_files import BrokenFile
from stages.data.formats.csv_table import CsvTable
from stages.data.formats.encoded_lines import EncodedLines, readable
from stages.data.formats.json_values import parse_json
from stages.text.sources.file_formats import RECORDS, file_format
from stages.text.sources.file_io import open_file, read_errors
from stages.text.sources.source_file import FilePart, SourceFile

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 1024  # rows of a table in memory


@dataclass(frozen=True, slots=True)
class RawRecord:
    """The fields of a record as stored, or the reason why it has none."""

    values: Mapping[str, Any]
    place: dict[str, Any]
    """Line or row in the file; of a broken record also the `error`."""
    broken: str = ""
    """Rule that drops a record that cannot be read; empty for a readable one."""
    raw: bytes | str = ""
    """The record as stored, in formats of text."""


@dataclass(frozen=True, slots=True)
class RecordFields:
    """Names of the fields to read."""

    texts: tuple[str, ...]
    """Fields of text; at least one of them must be a column of a table."""
    meta: tuple[str, ...] = ()
    """Other fields, which may be absent."""

    def columns(self, names: Sequence[str], where: str) -> list[str]:
        """Return those that a table has.

        Raises:
            InputError: it has no field of text.
        """
        if not set(self.texts) & set(names):
            raise InputError(
                f"no column {' or '.join(map(repr, self.texts))}",
                where=where,
                remedy=f"the columns are {', '.join(names)}: name one of them for the text",
            )
        return [name for name in (*self.texts, *self.meta) if name in names]

    def any_in(self, names: Iterable[str]) -> bool:
        """Return whether there is a field of text among the names."""
        return not set(self.texts).isdisjoint(names)


@dataclass(frozen=True, slots=True)
class AllFields:
    """Every field of a record, whatever its name."""

    def columns(self, names: Sequence[str], where: str) -> list[str]:
        """Return all columns of a table."""
        return list(names)

    def any_in(self, names: Iterable[str]) -> bool:
        """Return whether there is any name."""
        return any(True for _ in names)


Fields = RecordFields | AllFields


def has_records(file: SourceFile) -> bool:
    """Return whether a file holds records with fields."""
    return file.is_dataset or file_format(file.place) in RECORDS


def read_records(file: SourceFile, fields: Fields) -> Iterator[RawRecord]:
    """Yield the records of a file, or of its part, in order.

    Raises:
        BrokenFile: the file is damaged or truncated.
        InputError: it is missing, may not be read, or has no such column.
    """
    with read_errors(file):
        read = _read_dataset if file.is_dataset else _READERS[file_format(file.place)]
        yield from read(file, fields)


def _read_json_lines(file: SourceFile, fields: Fields) -> Iterator[RawRecord]:
    part = file.part or FilePart(0, sys.maxsize, 0, 0)
    with open_file(file) as stream:
        lines = EncodedLines(stream, part.encoding, start=part.start, end=part.end)
        yield from _json_lines(lines, lines, part.lines_before + 1)


def _json_lines(encoded: EncodedLines, lines: Iterable[bytes], first: int) -> Iterator[RawRecord]:
    for number, line in enumerate(lines, first):
        if not line.strip():
            continue
        place = {"line": number}
        try:
            yield _json_record(parse_json(line), place, line)
        except ValueError as error:
            reason = encoded.reason(line)
            rule = "broken.encoding" if reason else "broken.json"
            yield RawRecord({}, {**place, "error": reason or f"not JSON: {error}"}, rule, line)


def _json_record(value: Any, place: dict[str, Any], raw: bytes | str) -> RawRecord:
    return RawRecord(value if isinstance(value, dict) else {}, place, raw=raw)


def _read_json(file: SourceFile, fields: Fields) -> Iterator[RawRecord]:
    """Yield the records of a json file: an array, a single object, or lines (as Dolma's)."""
    with open_file(file) as stream:
        encoded = EncodedLines(stream)
        lines = iter(encoded)
        head = next((line for line in lines if line.strip()), b"")
        start = head.strip()
        if not start.startswith(b"[") and not start.endswith((b"{", b"[", b",")):
            yield from _json_lines(encoded, chain([head], lines), 1)
            return
        data = head + b"".join(lines)
    try:
        value = parse_json(data)
    except ValueError as error:
        yield from _leading_elements(data, file, encoded.reason(data) or f"not JSON: {error}")
        return
    for row, item in enumerate(value if isinstance(value, list) else [value]):
        raw = ""
        with suppress(RecursionError):  # nested as deeply as the parser allows
            raw = json.dumps(item)
        yield _json_record(item, {"row": row}, raw)


def _leading_elements(data: bytes, file: SourceFile, reason: str) -> Iterator[RawRecord]:
    """Yield the elements of an array that precede its damage, and raise that."""
    text, decoder = readable(data), json.JSONDecoder()
    separator = re.compile(r"\s*[\[,]\s*")
    row, found = 0, separator.match(text)
    try:
        while found:
            item, end = decoder.raw_decode(text, found.end())
            yield _json_record(item, {"row": row}, text[found.end() : end])
            row, found = row + 1, re.compile(r"\s*,\s*").match(text, end)
    except (ValueError, RecursionError):
        pass
    raise BrokenFile(reason, where=file.display_path)


def _read_csv(file: SourceFile, fields: Fields) -> Iterator[RawRecord]:
    import csv

    with open_file(file) as stream:
        lines = EncodedLines(stream)
        delimiter = "\t" if file_format(file.place) == ".tsv" else ","
        try:
            table = CsvTable(lines.decoded(), delimiter)
        except csv.Error as error:
            raise BrokenFile(f"not a csv file: {error}", where=file.display_path) from error
        if not table.columns:
            return
        if not isinstance(fields, RecordFields) or not fields.any_in(table.columns):
            _refuse_binary("".join(table.columns), file)
        wanted = fields.columns(table.columns, file.display_path)
        for row in table:
            values = dict(zip(table.columns, row.values, strict=False))
            if not fields.any_in(values):
                place = {"line": row.line, "error": row.broken or "too few fields"}
                yield RawRecord({}, place, "broken.columns", row.raw)
            elif lines.damaged and (reason := _undecodable_field(lines, values, wanted)):
                place = {"line": row.line, "error": reason}
                yield RawRecord({}, place, "broken.encoding", delimiter.join(row.values))
            else:
                yield RawRecord(values, {"line": row.line})


def _undecodable_field(
    lines: EncodedLines, values: Mapping[str, str], wanted: Sequence[str]
) -> str:
    """Return which field cannot be decoded, and why; empty if all can."""
    reasons = ((name, lines.reason(values.get(name, ""))) for name in wanted)
    return next((f"{name}: {reason}" for name, reason in reasons if reason), "")


def _refuse_binary(header: str, file: SourceFile) -> None:
    """Refuse a file of bytes whose first line is no header.

    Raises:
        BrokenFile: its content is binary.
    """
    if not header.isprintable():
        raise BrokenFile("not a csv file: its content is binary", where=file.display_path)


def _read_parquet(file: SourceFile, fields: Fields) -> Iterator[RawRecord]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_file(file) as stream:
        try:
            table = pq.ParquetFile(stream)
            columns = fields.columns(table.schema_arrow.names, file.display_path)
        except (pa.ArrowException, ValueError) as error:  # names in the footer may not be UTF-8
            raise BrokenFile(f"not a parquet file: {error}", where=file.display_path) from error
        part = file.part or FilePart(0, table.num_row_groups, 0, 0)
        row = part.lines_before
        for group in range(part.start, part.end):
            end = row + table.metadata.row_group(group).num_rows
            try:
                for batch in table.iter_batches(_BATCH, [group], columns=columns):
                    yield from _table_rows(batch, row)
                    row += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                reason = f"rows {row} to {end - 1} cannot be read: {error}"
                yield RawRecord({}, {"row": row, "error": reason}, "broken.file")
            row = end


def _table_rows(batch: pa.RecordBatch | pa.Table, first: int) -> Iterator[RawRecord]:
    """Yield the rows of an Arrow table."""
    from stages.data.formats.arrow_rows import arrow_rows

    for number, row in enumerate(arrow_rows(batch), first):
        place = {"row": number, "error": row.error} if row.broken else {"row": number}
        yield RawRecord(row.values, place, row.broken)


def _read_dataset(file: SourceFile, fields: Fields) -> Iterator[RawRecord]:
    from stages.text.sources.hf_datasets import dataset_tables

    row = file.first_record
    try:
        for table in dataset_tables(file, fields.columns):
            yield from _table_rows(table, row)
            row += table.num_rows
    except ValueError as error:  # Arrow's, JSON's, of an encoding, of columns of other types
        raise BrokenFile(f"damaged: {error}", where=file.path) from error


_READERS: dict[str, Callable[[SourceFile, Fields], Iterator[RawRecord]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
