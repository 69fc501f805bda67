"""Text that an earlier document holds already, cut out of the later ones.

    lines        the same line (case and blanks do not count), as C4 does
    paragraphs   the same paragraph, as CCNet does
    substrings   the same run of characters anywhere, as suffix arrays find it (Lee et al. 2022)

What was read first stays, every repetition goes, within a document too. Runs of at least n
characters are found in two rounds of hashes: anchors first (see `rolling`), then every run of n
around an anchor that occurs more than once. A character goes exactly if it lies in a run of n that
occurred before. A document of which too little is left goes whole; what it was the first to hold
goes with it, and is found in `dropped/`.
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
from stages.text.cleaning_params import Dedup
from stages.text.dedup.duplicates import DuplicateSearch, TableGroup, group_tables
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
    "lines": re.compile(r"[^\n]*\n|[^\n]+"),
    "paragraphs": re.compile(r".+?(?:\n{2,}|\Z)", re.DOTALL),
}
_NUMBERS = ("row", "removed", "units")
TRIMMED = parquet_parts.versioned_schema(
    pa.schema([("text", pa.string()), *((name, pa.int64()) for name in _NUMBERS)]), "Trimmed", 2
)

TextUnit = Literal["lines", "paragraphs", "substrings"]
UnitTask = tuple[TableGroup, Path, TextUnit, int]
"""A group, which documents stay, what is compared, and its least length."""


@dataclass(frozen=True, slots=True)
class RepeatedSpans:
    """Where repetitions of one kind are: tables of (row, place), each in order."""

    unit: TextUnit
    least: int
    """Characters of a repetition, at least."""
    commits: tuple[Path, ...]

    def within(self, group: TableGroup) -> dict[int, Places]:
        """The places in each of the group's documents, by row."""
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
        """First character and one past the last of each repetition."""
        if self.unit == "substrings":
            gaps = np.flatnonzero(np.diff(places) > self.least) + 1
            for together in np.split(places, gaps) if len(places) else ():
                yield int(together[0]), int(together[-1]) + self.least
            return
        starts = set(places.tolist())
        yield from (span for span in _spans(text, self.unit) if span[0] in starts)


def remove_repeated_text(
    commits: Sequence[Path],
    duplicates: DuplicateSearch,
    dedup: Dedup,
    scope: TaskScope,
    counter: TokenCounter,
) -> tuple[DuplicateSearch, list[Path]]:
    """Find what the documents that stay repeat; tables of the trimmed ones, and the census, in
    which those are dropped of which too little is left."""
    scope = replace(scope, folder=scope.folder / "repeats")
    scope.folder.mkdir(parents=True, exist_ok=True)
    kept = scope.folder / "kept.npy"
    write_array(kept, duplicates.kept)
    groups = group_tables(commits, 0, len(duplicates.considered), earlier=False, rows_per_group=0)
    found = list(_found(groups, kept, dedup, scope))
    works = [(group, found, dedup.min_remaining, counter) for group in groups]
    removals = scope.run("trimmed", remove_from_group, works)
    return _without_emptied(duplicates, removals), removals


def _found(
    groups: Sequence[TableGroup], kept: Path, dedup: Dedup, scope: TaskScope
) -> Iterator[RepeatedSpans]:
    units: dict[TextUnit, int | None] = {"lines": dedup.lines, "paragraphs": dedup.paragraphs}
    for unit, least in units.items():
        if least:
            works: list[UnitTask] = [(group, kept, unit, least) for group in groups]
            yield _repeats(unit, least, scope.run(unit, commit_unit_hashes, works), scope)
    if least := dedup.substrings:
        spread = scope.run("anchors", commit_anchors, [(g, kept, least) for g in groups])
        shared = scope.run("shared", commit_shared, hash_ranges(spread))
        common = RepeatedSpans("substrings", least, tuple(shared))
        spread = scope.run("runs", commit_substring_hashes, [(g, common) for g in groups])
        yield _repeats("substrings", least, spread, scope)


def _repeats(unit: TextUnit, least: int, spread: Sequence[Path], scope: TaskScope) -> RepeatedSpans:
    commits = scope.run(f"repeated-{unit}", commit_repeats, hash_ranges(spread))
    return RepeatedSpans(unit, least, tuple(commits))


def _texts(group: TableGroup, wanted: npt.NDArray[np.bool_]) -> Iterator[tuple[int, str]]:
    """The wanted documents of a group with their rows, a batch in memory."""
    row = group.start
    for file in group.files:
        for batch in pq.ParquetFile(file).iter_batches(256, columns=["text"]):
            for text in batch.column(0).to_pylist():
                if row < group.start + group.rows and wanted[row - group.start]:
                    yield row, text
                row += 1


def commit_unit_hashes(work: UnitTask, commit: Path) -> None:
    """Commit the hashes of a group's lines or paragraphs."""
    group, kept, unit, least = work
    found = [
        _unit_records(row, text, unit, least)
        for row, text in _texts(group, np.load(kept, mmap_mode="r")[group.numbers])
    ]
    write_records(commit, np.concatenate([np.empty(0, RECORD), *found]))


def _unit_records(row: int, text: str, unit: TextUnit, least: int) -> Records:
    found = []
    for start, end in _spans(text, unit):
        words = " ".join(text[start:end].lower().split())
        if len(words) >= least:
            digest = xxhash.xxh3_128_intdigest(words.encode("utf-8", "surrogatepass"))
            found.append((digest >> 64, digest & 0xFFFFFFFF, start, row))
    return np.array(found, RECORD)


def _spans(text: str, unit: TextUnit) -> Iterator[tuple[int, int]]:
    yield from (match.span() for match in _UNITS[unit].finditer(text))


def commit_anchors(work: tuple[TableGroup, Path, int], commit: Path) -> None:
    """Commit the anchors of a group's documents."""
    group, kept, least = work
    width = _anchor_width(least)
    found = [np.empty(0, RECORD)]
    for row, text in _texts(group, np.load(kept, mmap_mode="r")[group.numbers]):
        hashes = RollingHash(text).hashes(width)
        places = winnow(hashes, least - width + 1)
        found.append(_records(row, places, hashes[places]))
    write_records(commit, np.concatenate(found))


def _anchor_width(least: int) -> int:
    return least // 2


def _records(row: int, places: Places, keys: npt.NDArray[np.uint64]) -> Records:
    records = np.zeros(len(places), RECORD)
    records["key"], records["at"], records["row"] = keys, places, row
    return records


def commit_substring_hashes(work: tuple[TableGroup, RepeatedSpans], commit: Path) -> None:
    """Commit the runs of a group's documents that hold an anchor of which there are more."""
    group, common = work
    least, reach = common.least, common.least - _anchor_width(common.least)
    places = common.within(group)
    wanted = np.isin(np.arange(group.start, group.start + group.rows), list(places))
    found = [np.empty(0, RECORD)]
    for row, text in _texts(group, wanted):
        runs = RollingHash(text)
        hashes = runs.hashes(least)
        near = np.zeros(len(hashes) + 1, np.int64)
        np.add.at(near, np.maximum(places[row] - reach, 0), 1)
        np.add.at(near, np.minimum(places[row] + 1, len(hashes)), -1)
        starts = np.flatnonzero(np.cumsum(near)[:-1])
        records = _records(row, starts, hashes[starts])
        records["check"] = runs.ends(starts, least)
        found.append(records)
    write_records(commit, np.concatenate(found))


def commit_repeats(within: HashRange, commit: Path) -> None:
    """Commit where a range's hashes occur again."""
    records = within.records()
    _write_places(commit, records[repeats_previous(records)])


def commit_shared(within: HashRange, commit: Path) -> None:
    """Commit where those of a range's hashes occur that occur more than once."""
    records = within.records()
    again = repeats_previous(records)
    _write_places(commit, records[again | np.append(again[1:], False)])


def _write_places(commit: Path, records: Records) -> None:
    rows, places = records["row"], records["at"].astype(np.int64)
    order = np.lexsort((places, rows))
    write_array(commit, np.stack([rows[order], places[order]]))


def remove_from_group(
    work: tuple[TableGroup, list[RepeatedSpans], int, TokenCounter], commit: Path
) -> None:
    """Commit the group's documents that repeat something, without it: no text where fewer than
    so many characters are left."""
    from pipeline.atomic_io import write_atomic

    group, found, min_remaining, counter = work
    places = [(kind, kind.within(group)) for kind in found]
    rows = {row for _, by_row in places for row in by_row}
    wanted = np.isin(np.arange(group.start, group.start + group.rows), list(rows))
    trimmed = []
    for row, text in _texts(group, wanted):
        spans = [
            span
            for kind, by_row in places
            for span in kind.spans(text, by_row.get(row, np.empty(0, np.int64)))
        ]
        left = remove_spans(text, spans)
        stays = left if len(left) >= min_remaining else None
        units = None if stays is None else counter.count_text(stays)
        removed = len(text) - len(left)
        trimmed.append({"row": row, "text": stays, "removed": removed, "units": units})
    write_atomic(commit, parquet_parts.encode_part(trimmed, TRIMMED), durable=False)


def remove_spans(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text without these spans and without empty lines at its ends."""
    starts, ends = np.array(spans, np.int64).reshape(-1, 2).T
    pieces = (text[start:end] for start, end in complement_spans(starts, ends, len(text)))
    return "".join(pieces).strip("\n")


def _without_emptied(duplicates: DuplicateSearch, removals: Sequence[Path]) -> DuplicateSearch:
    copy, shared = duplicates.copy.copy(), duplicates.shared_bands.copy()
    for commit in removals:
        table = pq.read_table(commit)
        emptied = table.filter(table["text"].is_null())
        rows = emptied["row"].to_numpy()
        copy[rows] = REPEATED
        shared[rows] = emptied["removed"].to_numpy() / duplicates.characters[rows]
    return replace(duplicates, copy=copy, shared_bands=shared)


def rows_after_removal(
    rows: Iterator[dict[str, Any]], removals: Sequence[Path]
) -> Iterator[dict[str, Any]]:
    """The rows in order, those that were trimmed with what is left and how much was `removed`."""
    changes = (
        change
        for commit in removals
        for batch in pq.ParquetFile(commit).iter_batches(256)
        for change in batch.to_pylist()
    )
    change = next(changes, None)
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
        change = next(changes, None)
