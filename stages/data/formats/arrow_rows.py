"""Rows of Arrow tables, where a value that cannot be read costs its row.

Strings of parquet files need not be UTF-8, because writers in other languages do not check them,
and dates may lie outside the range of Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class ArrowRow:
    """The values of a row by column, or the reason why it has none."""

    values: dict[str, Any]
    broken: str = ""
    """Rule `broken.encoding` or `broken.value` of a row that cannot be read."""
    error: str = ""
    """Column and reason."""


def arrow_rows(table: pa.RecordBatch | pa.Table) -> Iterator[ArrowRow]:
    """Yield the rows of a table in order."""
    try:
        rows = [ArrowRow(values) for values in table.to_pylist()]
    except (ValueError, OverflowError):
        rows = [_read_row(table.slice(at, 1)) for at in range(table.num_rows)]
    yield from rows


def _read_row(row: pa.RecordBatch | pa.Table) -> ArrowRow:
    values = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            (values[name],) = column.to_pylist()
        except (ValueError, OverflowError) as error:
            rule = "broken.encoding" if isinstance(error, UnicodeDecodeError) else "broken.value"
            return ArrowRow({}, rule, f"{name}: {error}")
    return ArrowRow(values)
