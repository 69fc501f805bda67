"""Documents on disk: kept and dropped documents with their scores.

documents/part-00000.parquet   id, text, source, lang, meta (JSON), scores (one field per rule)
dropped/part-00000.parquet     the same, with the rule that dropped it and its score
stats.json                     counts; kept + dropped (+ removed) == read, for documents and
                               characters
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import CorruptArtifact, InputError
from pipeline.plain_data import to_json
from stages.data import kinds, parquet_parts

KIND = kinds.DOCUMENTS.name
VERSION = 1

COLUMNS = ("id", "text", "source", "lang", "meta")
_KEPT = [(name, pa.string()) for name in COLUMNS]
_DROPPED = [*_KEPT, ("rule", pa.string()), ("score", pa.float64())]


@dataclass(frozen=True, slots=True)
class Document:
    """One text with its origin."""

    id: str
    text: str
    source: str
    lang: str
    meta: str = "{}"
    """JSON object: path, position in the file, title."""


def documents_writer(out: Path, rules: Sequence[str] = ()) -> parquet_parts.PartWriter:
    """Open a writer of kept documents: rows with `COLUMNS` and, with `rules`, `scores`."""
    return parquet_parts.PartWriter(out / "documents", _schema(_KEPT, rules), "text")


def dropped_writer(out: Path, rules: Sequence[str] = ()) -> parquet_parts.PartWriter:
    """Open a writer of dropped documents: the same rows with `rule` and `score`."""
    return parquet_parts.PartWriter(out / "dropped", _schema(_DROPPED, rules), "text")


def _schema(columns: list[tuple[str, pa.DataType]], rules: Sequence[str]) -> pa.Schema:
    scores = pa.struct([(rule, pa.float64()) for rule in rules])
    return parquet_parts.versioned_schema(
        pa.schema([*columns, ("scores", scores)] if rules else columns), KIND, VERSION
    )


def write_stats(out: Path, stats: dict[str, Any]) -> None:
    """Write the counts; `removed`, if given, counts text that was cut out of kept documents.

    Raises:
        CorruptArtifact: kept, dropped and removed do not add up to read.
    """
    from pipeline.atomic_io import write_atomic

    for unit in ("documents", "characters"):
        read, kept, dropped = (stats[state][unit] for state in ("read", "kept", "dropped"))
        removed = stats.get("removed", {}).get(unit, 0)
        if read != kept + dropped + removed:
            raise CorruptArtifact(
                f"{kept} kept, {dropped} dropped and {removed} removed of {read} {unit} read"
            )
    write_atomic(out / "stats.json", to_json(stats, indent=1, sort_keys=True))


def read_stats(path: Path) -> dict[str, Any]:
    """Read the counts of a Documents artifact."""
    stats: dict[str, Any] = json.loads((Path(path) / "stats.json").read_text())
    return stats


class Documents:
    """The kept documents of an artifact, in order; iteration keeps one row group in memory."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.files = parquet_parts.part_files(self.path / "documents", KIND)
        self._rows = [
            parquet_parts.open_part(file, KIND, VERSION).metadata.num_rows for file in self.files
        ]

    def __len__(self) -> int:
        return sum(self._rows)

    def __iter__(self) -> Iterator[Document]:
        for part in range(len(self.files)):
            yield from self.part(part)

    def part(self, index: int) -> Iterator[Document]:
        """Yield the documents of one part file."""
        part = parquet_parts.open_part(self.files[index], KIND, VERSION)
        for batch in part.iter_batches(parquet_parts.ROWS_PER_GROUP, columns=list(COLUMNS)):
            for row in batch.to_pylist():
                yield Document(**row)

    def require_nonempty(self) -> Documents:
        """Return these documents.

        Raises:
            InputError: the artifact is empty.
        """
        if not len(self):
            raise InputError(
                "no documents",
                where=str(self.path),
                remedy="its dropped/ folder lists the dropped documents",
            )
        return self
