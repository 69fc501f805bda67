"""Rows of csv and tsv text, where a bad quote costs one row.

A quote that is never closed makes a csv parser swallow the rows behind it into one field. Here such
a row is broken, and reading continues at the first swallowed line from which on all look like rows,
else behind them.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MAX_FIELD = 1 << 26
"""Maximum size of a field, characters; a longer one is an open quote."""
_LOOKAHEAD = 8  # swallowed lines that must look like rows


@dataclass(frozen=True, slots=True)
class CsvRow:
    """A row as stored."""

    line: int
    """Number of its first line, from 1."""
    values: list[str]
    """Its fields; empty if it is broken."""
    broken: str = ""
    """Reason why it cannot be read."""
    raw: str = ""
    """The lines that are left out, if it is broken."""


class CsvTable:
    """A csv text: the names of its columns, then its rows."""

    def __init__(self, lines: Iterable[str], delimiter: str = ",") -> None:
        """Read the header.

        Args:
            lines: the text, in lines with their ends.
            delimiter: what separates fields.

        Raises:
            csv.Error: the header cannot be parsed.
        """
        csv.field_size_limit(MAX_FIELD)
        self._lines = _PushbackLines(lines)
        self._delimiter = delimiter
        self._reader = csv.reader(self._lines, delimiter=delimiter, strict=True)
        self.columns: list[str] = next(filter(None, self._reader), [])
        """Names of the columns; empty if the text is."""

    def __iter__(self) -> Iterator[CsvRow]:
        """Yield the rows, without blank lines."""
        while True:
            self._lines.taken.clear()
            line = self._lines.count + 1
            try:
                values = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield self._recover(line, error)
                continue
            if values:
                yield self._row(line, values)

    def _row(self, line: int, values: list[str]) -> CsvRow:
        """Return a row. Some programs leave out empty fields at the end of a line; a short row at
        the end of a file without a line end is truncated."""
        missing = len(self.columns) - len(values)
        truncated = not self._lines.taken[-1].endswith(("\n", "\r"))
        if missing < 0 or (missing > 0 and truncated):
            reason = f"{len(values)} fields instead of {len(self.columns)}"
            return CsvRow(line, [], reason, self._lines.taken[0])
        return CsvRow(line, values)

    def _recover(self, line: int, error: csv.Error) -> CsvRow:
        """Return a row that cannot be parsed, and put back the lines that it swallowed."""
        first, *swallowed = self._lines.taken
        if not swallowed and not self._lines.ended:  # quotes within a field that are not doubled
            values = self._parse(first)
            if len(values) == len(self.columns):
                return CsvRow(line, values)
        resembles = [not text.strip() or self._resembles_row(text) for text in swallowed]
        starts = (at for at in range(len(swallowed)) if all(resembles[at : at + _LOOKAHEAD]))
        own = next(starts, len(swallowed))
        self._lines.push_back(swallowed[own:])
        return CsvRow(line, [], str(error), "".join([first, *swallowed[:own]]))

    def _resembles_row(self, line: str) -> bool:
        """Return whether a line is a row, or begins one whose last field goes on."""
        values = self._parse(line, strict=True)
        if values:
            return len(values) == len(self.columns)
        return 1 < len(self._parse(line)) <= len(self.columns)

    def _parse(self, line: str, *, strict: bool = False) -> list[str]:
        """Return the fields of a line; none if it cannot be parsed."""
        try:
            return next(csv.reader([line], delimiter=self._delimiter, strict=strict), [])
        except csv.Error:
            return []


class _PushbackLines:
    """Iterator over lines that stores those of the current row and takes them back."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._returned: deque[str] = deque()
        self.taken: list[str] = []
        self.count = 0
        """Lines before the next one."""
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else next(self._lines, None)
        self.ended = line is None
        if line is None:
            raise StopIteration
        self.taken.append(line)
        self.count += 1
        return line

    def push_back(self, lines: list[str]) -> None:
        self._returned.extendleft(reversed(lines))
        self.count -= len(lines)
