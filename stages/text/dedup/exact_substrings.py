"""Removal of text that occurred earlier.

    line         the same line (regardless of case and blanks), as in C4
    paragraph    the same paragraph, as in CCNet
    substring    the same substring anywhere, as suffix arrays find it (Lee et al. 2022)

The first occurrence is kept and every repetition removed, within a document too. Substrings of at
least n characters are found in two rounds of hashes: anchors first (see `rolling_hash`), then every
substring of n characters around an anchor that occurs more than once. A character is removed
exactly if it belongs to a substring of n characters that occurred before. A document with too
little text left is dropped whole, with the text it was the first to contain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from stages.data import parquet_parts
from stages.text.char_spans import complement_spans
from stages.text.dedup.dedup_params import DedupParams
from stages.text.dedup.duplicates import Duplicates, TableGroup, group_tables
from stages.text.dedup.hash_join import (
    RECORD,
    HashRange,
    Records,
    TaskScope,
    hash_ranges,
    repeats_previous,
    write_array,
    write_records,
)
from stages.text.dedup.rolling_hash import Places, RollingHash, winnow
from stages.text.token_counter import TokenCounter

REPEATED = "repeated_text"
_UNITS = {
    "line": re.compile(r"[^\n]*\n|[^\n]+"),
    "paragraph": re.compile(r".+?(?:\n{2,}|\Z)", re.DOTALL),
}
_NUMBERS = ("row", "removed", "units")
CHANGES = parquet_parts.versioned_schema(
    pa.schema([("text", pa.string()), *((name, pa.int64()) for name in _NUMBERS)]), "Changes", 2
)

TextUnit = Literal["line", "paragraph", "substring"]
UnitTask = tuple[TableGroup, Path, TextUnit, int]
"""A group, the file of kept documents, the unit, and its minimum length in characters."""


@dataclass(frozen=True, slots=True)
class RepeatedSpans:
    """Places of repeated text of one unit: tables of (row, place), each in order."""

    unit: TextUnit
    min_length: int
    """Minimum length of repeated text, characters."""
    commits: tuple[Path, ...]

    def within(self, group: TableGroup) -> dict[int, Places]:
        """Return the places in each of the group's documents, by row."""
        found = []
        for commit in self.commits:
            table = np.load(commit, mmap_mode="r")
            start, end = np.searchsorted(table[0], [group.start, group.start + group.rows])
            found.append(np.array(table[:, start:end]))
        rows, places = np.concatenate(found, axis=1)
        order = np.lexsort((places, rows))
        rows, places = rows[order], places[order]
        edges = np.flatnonzero(np.diff(rows, prepend=-1))
        return dict(
            zip(
                rows[edges].tolist(), np.split(places, edges[1:]) if len(edges) else [], strict=True
            )
        )

    def spans(self, text: str, places: Places) -> Iterator[tuple[int, int]]:
        """Yield the first character and one past the last of each repetition."""
        if self.unit == "substring":
            gaps = np.flatnonzero(np.diff(places) > self.min_length) + 1
            for run in np.split(places, gaps) if len(places) else ():
                yield int(run[0]), int(run[-1]) + self.min_length
            return
        starts = set(places.tolist())
        yield from (span for span in _unit_spans(text, self.unit) if span[0] in starts)


def remove_repeated_text(
    annotations: Sequence[Path],
    duplicates: Duplicates,
    dedup: DedupParams,
    scope: TaskScope,
    counter: TokenCounter,
) -> tuple[Duplicates, list[Path]]:
    """Remove what the kept documents repeat.

    Returns:
        The duplicates, including the documents that have too little text left; and tables of the
        documents that were changed.
    """
    scope = replace(scope, folder=scope.folder / "repeats")
    scope.folder.mkdir(parents=True, exist_ok=True)
    kept = scope.folder / "kept.npy"
    write_array(kept, duplicates.kept)
    groups = group_tables(annotations, 0, len(duplicates.passed), earlier=False, rows_per_group=0)
    repeated = list(_find_repeated(groups, kept, dedup, scope))
    works = [(group, repeated, dedup.min_remaining, counter) for group in groups]
    changes = scope.run("changes", commit_changes, works)
    reason, score = duplicates.reason.copy(), duplicates.score.copy()
    for commit in changes:
        table = pq.read_table(commit)
        emptied = table.filter(table["text"].is_null())
        rows = emptied["row"].to_numpy()
        reason[rows] = REPEATED
        score[rows] = emptied["removed"].to_numpy() / duplicates.characters[rows]
    return replace(duplicates, reason=reason, score=score), changes


def _find_repeated(
    groups: Sequence[TableGroup], kept: Path, dedup: DedupParams, scope: TaskScope
) -> Iterator[RepeatedSpans]:
    units: dict[TextUnit, int | None] = {
        "line": dedup.min_repeated_line,
        "paragraph": dedup.min_repeated_paragraph,
    }
    for unit, length in units.items():
        if length:
            works: list[UnitTask] = [(group, kept, unit, length) for group in groups]
            hashes = scope.run(f"{unit}s", commit_unit_hashes, works)
            yield _repeated_spans(unit, length, hashes, scope)
    if length := dedup.min_repeated_substring:
        anchors = scope.run("anchors", commit_anchors, [(g, kept, length) for g in groups])
        shared = scope.run("shared", commit_shared, hash_ranges(anchors))
        common = RepeatedSpans("substring", length, tuple(shared))
        hashes = scope.run("substrings", commit_substring_hashes, [(g, common) for g in groups])
        yield _repeated_spans("substring", length, hashes, scope)


def _repeated_spans(
    unit: TextUnit, min_length: int, hashes: Sequence[Path], scope: TaskScope
) -> RepeatedSpans:
    commits = scope.run(f"repeated-{unit}s", commit_repeats, hash_ranges(hashes))
    return RepeatedSpans(unit, min_length, tuple(commits))


def _texts(group: TableGroup, wanted: npt.NDArray[np.bool_]) -> Iterator[tuple[int, str]]:
    """Yield the wanted documents of a group with their rows, a batch in memory."""
    row = group.start
    for file in group.files:
        for batch in pq.ParquetFile(file).iter_batches(256, columns=["text"]):
            for text in batch.column(0).to_pylist():
                if row < group.start + group.rows and wanted[row - group.start]:
                    yield row, text
                row += 1


def commit_unit_hashes(task: UnitTask, commit: Path) -> None:
    """Commit the hashes of a group's lines or paragraphs."""
    group, kept, unit, min_length = task
    found = []
    for row, text in _texts(group, np.load(kept, mmap_mode="r")[group.row_slice]):
        records = []
        for start, end in _unit_spans(text, unit):
            words = " ".join(text[start:end].lower().split())
            if len(words) >= min_length:
                digest = xxhash.xxh3_128_intdigest(words.encode("utf-8", "surrogatepass"))
                records.append((digest >> 64, digest & 0xFFFFFFFF, start, row))
        found.append(np.array(records, RECORD))
    write_records(commit, np.concatenate([np.empty(0, RECORD), *found]))


def _unit_spans(text: str, unit: TextUnit) -> Iterator[tuple[int, int]]:
    yield from (match.span() for match in _UNITS[unit].finditer(text))


def commit_anchors(task: tuple[TableGroup, Path, int], commit: Path) -> None:
    """Commit the anchors of a group's documents."""
    group, kept, min_length = task
    width = _anchor_width(min_length)
    found = [np.empty(0, RECORD)]
    for row, text in _texts(group, np.load(kept, mmap_mode="r")[group.row_slice]):
        hashes = RollingHash(text).hashes(width)
        places = winnow(hashes, min_length - width + 1)
        found.append(_records(row, places, hashes[places]))
    write_records(commit, np.concatenate(found))


def _anchor_width(min_length: int) -> int:
    return min_length // 2


def _records(row: int, places: Places, keys: npt.NDArray[np.uint64]) -> Records:
    records = np.zeros(len(places), RECORD)
    records["key"], records["at"], records["row"] = keys, places, row
    return records


def commit_substring_hashes(task: tuple[TableGroup, RepeatedSpans], commit: Path) -> None:
    """Commit the substrings of a group's documents around anchors that occur more than once."""
    group, common = task
    length, reach = common.min_length, common.min_length - _anchor_width(common.min_length)
    places = common.within(group)
    wanted = np.isin(np.arange(group.start, group.start + group.rows), list(places))
    found = [np.empty(0, RECORD)]
    for row, text in _texts(group, wanted):
        rolling = RollingHash(text)
        hashes = rolling.hashes(length)
        near = np.zeros(len(hashes) + 1, np.int64)
        np.add.at(near, np.maximum(places[row] - reach, 0), 1)
        np.add.at(near, np.minimum(places[row] + 1, len(hashes)), -1)
        starts = np.flatnonzero(np.cumsum(near)[:-1])
        records = _records(row, starts, hashes[starts])
        records["check"] = rolling.end_characters(starts, length)
        found.append(records)
    write_records(commit, np.concatenate(found))


def commit_repeats(within: HashRange, commit: Path) -> None:
    """Commit the second and later places of each hash in a range."""
    records = within.records()
    _write_places(commit, records[repeats_previous(records)])


def commit_shared(within: HashRange, commit: Path) -> None:
    """Commit all places of the hashes in a range that occur more than once."""
    records = within.records()
    again = repeats_previous(records)
    _write_places(commit, records[again | np.append(again[1:], False)])


def _write_places(commit: Path, records: Records) -> None:
    rows, places = records["row"], records["at"].astype(np.int64)
    order = np.lexsort((places, rows))
    write_array(commit, np.stack([rows[order], places[order]]))


def commit_changes(
    task: tuple[TableGroup, list[RepeatedSpans], int, TokenCounter], commit: Path
) -> None:
    """Commit the group's documents that repeat text, without it: no text where fewer than
    `min_remaining` characters are left."""
    from pipeline.atomic_io import write_atomic

    group, repeated, min_remaining, counter = task
    places = [(spans, spans.within(group)) for spans in repeated]
    rows = {row for _, by_row in places for row in by_row}
    wanted = np.isin(np.arange(group.start, group.start + group.rows), list(rows))
    changed = []
    for row, text in _texts(group, wanted):
        spans = [
            span
            for unit, by_row in places
            for span in unit.spans(text, by_row.get(row, np.empty(0, np.int64)))
        ]
        rest = remove_spans(text, spans)
        kept = rest if len(rest) >= min_remaining else None
        units = None if kept is None else counter.count_text(kept)
        removed = len(text) - len(rest)
        changed.append({"row": row, "text": kept, "removed": removed, "units": units})
    write_atomic(commit, parquet_parts.encode_part(changed, CHANGES), durable=False)


def remove_spans(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """Return the text without these spans and without empty lines at its ends."""
    starts, ends = np.array(spans, np.int64).reshape(-1, 2).T
    pieces = (text[start:end] for start, end in complement_spans(starts, ends, len(text)))
    return "".join(pieces).strip("\n")


def rows_after_removal(
    rows: Iterator[dict[str, Any]], changes: Sequence[Path]
) -> Iterator[dict[str, Any]]:
    """Yield the rows in order; a changed one has the remaining text, and its `removed` size."""
    all_changes = (
        change
        for commit in changes
        for batch in pq.ParquetFile(commit).iter_batches(256)
        for change in batch.to_pylist()
    )
    change = next(all_changes, None)
    for number, row in enumerate(rows):
        if change is None or change["row"] != number:
            yield row
            continue
        if change["text"] is None:
            yield row
        else:
            yield {
                **row,
                "text": change["text"],
                "units": change["units"],
                "removed": {
                    "characters": change["removed"],
                    "units": row["units"] - change["units"],
                },
            }
        change = next(all_changes, None)
