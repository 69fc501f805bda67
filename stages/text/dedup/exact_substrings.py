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
from stages.text.char_spans import complement
from stages.text.cleaning_params import Dedup
from stages.text.dedup.duplicates import Census, Group, groups_of
from stages.text.dedup.hash_join import (
    RECORD,
    Range,
    Records,
    Room,
    ranges,
    repeats,
    write_array,
    write_records,
)
from stages.text.dedup.rolling_hash import Places, Runs, anchors
from stages.text.token_counter import TokenCounter

REPEATED = "repeated_text"
_UNITS = {
    "lines": re.compile(r"[^\n]*\n|[^\n]+"),
    "paragraphs": re.compile(r".+?(?:\n{2,}|\Z)", re.DOTALL),
}
_NUMBERS = ("row", "removed", "units")
TRIMMED = parquet_parts.versioned(
    pa.schema([("text", pa.string()), *((name, pa.int64()) for name in _NUMBERS)]), "Trimmed", 2
)

Unit = Literal["lines", "paragraphs", "substrings"]
UnitWork = tuple[Group, Path, Unit, int]
"""A group, which documents stay, what is compared, and its least length."""


@dataclass(frozen=True, slots=True)
class Found:
    """Where repetitions of one kind are: tables of (row, place), each in order."""

    unit: Unit
    least: int
    """Characters of a repetition, at least."""
    commits: tuple[Path, ...]

    def within(self, group: Group) -> dict[int, Places]:
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


def trim(
    commits: Sequence[Path], census: Census, dedup: Dedup, room: Room, counter: TokenCounter
) -> tuple[Census, list[Path]]:
    """Find what the documents that stay repeat; tables of the trimmed ones, and the census, in
    which those are dropped of which too little is left."""
    room = replace(room, folder=room.folder / "repeats")
    room.folder.mkdir(parents=True, exist_ok=True)
    kept = room.folder / "kept.npy"
    write_array(kept, census.kept)
    groups = groups_of(commits, 0, len(census.judged), earlier=False, rows_a_group=0)
    found = list(_found(groups, kept, dedup, room))
    works = [(group, found, dedup.min_remaining, counter) for group in groups]
    trims = room.run("trimmed", trim_group, works)
    return _without_emptied(census, trims), trims


def _found(groups: Sequence[Group], kept: Path, dedup: Dedup, room: Room) -> Iterator[Found]:
    units: dict[Unit, int | None] = {"lines": dedup.lines, "paragraphs": dedup.paragraphs}
    for unit, least in units.items():
        if least:
            works: list[UnitWork] = [(group, kept, unit, least) for group in groups]
            yield _repeats(unit, least, room.run(unit, spread_units, works), room)
    if least := dedup.substrings:
        spread = room.run("anchors", spread_anchors, [(g, kept, least) for g in groups])
        shared = room.run("shared", commit_shared, ranges(spread))
        common = Found("substrings", least, tuple(shared))
        spread = room.run("runs", spread_runs, [(g, common) for g in groups])
        yield _repeats("substrings", least, spread, room)


def _repeats(unit: Unit, least: int, spread: Sequence[Path], room: Room) -> Found:
    commits = room.run(f"repeated-{unit}", commit_repeats, ranges(spread))
    return Found(unit, least, tuple(commits))


def _texts(group: Group, wanted: npt.NDArray[np.bool_]) -> Iterator[tuple[int, str]]:
    """The wanted documents of a group with their rows, a batch in memory."""
    row = group.start
    for file in group.files:
        for batch in pq.ParquetFile(file).iter_batches(256, columns=["text"]):
            for text in batch.column(0).to_pylist():
                if row < group.start + group.rows and wanted[row - group.start]:
                    yield row, text
                row += 1


def spread_units(work: UnitWork, commit: Path) -> None:
    """Commit the hashes of a group's lines or paragraphs."""
    group, kept, unit, least = work
    found = [
        _unit_records(row, text, unit, least)
        for row, text in _texts(group, np.load(kept, mmap_mode="r")[group.numbers])
    ]
    write_records(commit, np.concatenate([np.empty(0, RECORD), *found]))


def _unit_records(row: int, text: str, unit: Unit, least: int) -> Records:
    found = []
    for start, end in _spans(text, unit):
        words = " ".join(text[start:end].lower().split())
        if len(words) >= least:
            digest = xxhash.xxh3_128_intdigest(words.encode("utf-8", "surrogatepass"))
            found.append((digest >> 64, digest & 0xFFFFFFFF, start, row))
    return np.array(found, RECORD)


def _spans(text: str, unit: Unit) -> Iterator[tuple[int, int]]:
    yield from (match.span() for match in _UNITS[unit].finditer(text))


def spread_anchors(work: tuple[Group, Path, int], commit: Path) -> None:
    """Commit the anchors of a group's documents."""
    group, kept, least = work
    width = _anchor_width(least)
    found = [np.empty(0, RECORD)]
    for row, text in _texts(group, np.load(kept, mmap_mode="r")[group.numbers]):
        hashes = Runs(text).hashes(width)
        places = anchors(hashes, least - width + 1)
        found.append(_records(row, places, hashes[places]))
    write_records(commit, np.concatenate(found))


def _anchor_width(least: int) -> int:
    return least // 2


def _records(row: int, places: Places, keys: npt.NDArray[np.uint64]) -> Records:
    records = np.zeros(len(places), RECORD)
    records["key"], records["at"], records["row"] = keys, places, row
    return records


def spread_runs(work: tuple[Group, Found], commit: Path) -> None:
    """Commit the runs of a group's documents that hold an anchor of which there are more."""
    group, common = work
    least, reach = common.least, common.least - _anchor_width(common.least)
    places = common.within(group)
    wanted = np.isin(np.arange(group.start, group.start + group.rows), list(places))
    found = [np.empty(0, RECORD)]
    for row, text in _texts(group, wanted):
        runs = Runs(text)
        hashes = runs.hashes(least)
        near = np.zeros(len(hashes) + 1, np.int64)
        np.add.at(near, np.maximum(places[row] - reach, 0), 1)
        np.add.at(near, np.minimum(places[row] + 1, len(hashes)), -1)
        starts = np.flatnonzero(np.cumsum(near)[:-1])
        records = _records(row, starts, hashes[starts])
        records["check"] = runs.ends(starts, least)
        found.append(records)
    write_records(commit, np.concatenate(found))


def commit_repeats(within: Range, commit: Path) -> None:
    """Commit where a range's hashes occur again."""
    records = within.records()
    _write_places(commit, records[repeats(records)])


def commit_shared(within: Range, commit: Path) -> None:
    """Commit where those of a range's hashes occur that occur more than once."""
    records = within.records()
    again = repeats(records)
    _write_places(commit, records[again | np.append(again[1:], False)])


def _write_places(commit: Path, records: Records) -> None:
    rows, places = records["row"], records["at"].astype(np.int64)
    order = np.lexsort((places, rows))
    write_array(commit, np.stack([rows[order], places[order]]))


def trim_group(work: tuple[Group, list[Found], int, TokenCounter], commit: Path) -> None:
    """Commit the group's documents that repeat something, without it: no text where fewer than
    so many characters are left."""
    from pipeline.storage.atomic_io import write_atomic

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
        left = without(text, spans)
        stays = left if len(left) >= min_remaining else None
        units = None if stays is None else counter.count_text(stays)
        removed = len(text) - len(left)
        trimmed.append({"row": row, "text": stays, "removed": removed, "units": units})
    write_atomic(commit, parquet_parts.encode(trimmed, TRIMMED), durable=False)


def without(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text without these spans and without empty lines at its ends."""
    starts, ends = np.array(spans, np.int64).reshape(-1, 2).T
    pieces = (text[start:end] for start, end in complement(starts, ends, len(text)))
    return "".join(pieces).strip("\n")


def _without_emptied(census: Census, trims: Sequence[Path]) -> Census:
    copy, shared = census.copy.copy(), census.shared_bands.copy()
    for commit in trims:
        table = pq.read_table(commit)
        emptied = table.filter(table["text"].is_null())
        rows = emptied["row"].to_numpy()
        copy[rows] = REPEATED
        shared[rows] = emptied["removed"].to_numpy() / census.characters[rows]
    return replace(census, copy=copy, shared_bands=shared)


def trimmed_rows(rows: Iterator[dict[str, Any]], trims: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The rows in order, those that were trimmed with what is left and how much was `removed`."""
    changes = (
        change
        for commit in trims
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
