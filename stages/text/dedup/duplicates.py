"""The second pass of cleaning: which document stands for each group of copies.

Only hashes and row numbers come here, never text. The documents that are being cleaned have the
rows 0 to N - 1; those of earlier artifacts, which always win, the rows after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages.text.cleaning_params import Dedup
from stages.text.dedup.components import Rows, survivors
from stages.text.dedup.hash_join import (
    RECORD,
    JaccardAtLeast,
    PairFilter,
    RowFiles,
    TaskScope,
    blocks,
    connected_rows,
    write_array,
    write_records,
)

ROWS_PER_GROUP = 1 << 16  # with 14 bands a million records: what a task sorts

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DuplicateSearch:
    """What is known of every judged document without its text; arrays of shape (N,)."""

    considered: npt.NDArray[np.bool_]
    """Passed all rules so far."""
    characters: npt.NDArray[np.int64]
    survivor: Rows
    """The document that stays in its place; itself for one that stays, or whose place is taken by
    a document of an earlier artifact."""
    copy: npt.NDArray[np.object_]
    """Why it is a copy: `exact_duplicate`, `near_duplicate`, the same with `_earlier`,
    `repeated_text`, or nothing."""
    shared_bands: Floats
    """Of a copy: the share of its bands that its survivor has too, or of its characters that were
    read before."""

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """Whether each document stays."""
        stays: npt.NDArray[np.bool_] = self.considered & (self.copy == "")
        return stays


@dataclass(frozen=True)
class TableGroup:
    """Consecutive tables of hashes, as many as a task takes."""

    files: tuple[Path, ...]
    start: int
    """The row of the first document."""
    rows: int
    earlier: bool = False
    """An index of an earlier artifact, of which all documents were kept."""

    def read(self, columns: list[str]) -> pa.Table:
        """These columns of the group's documents."""
        return pa.concat_tables(pq.read_table(file, columns=columns) for file in self.files).slice(
            0, self.rows
        )

    @property
    def numbers(self) -> slice:
        """The documents' rows."""
        return slice(self.start, self.start + self.rows)


def group_tables(
    files: Sequence[Path],
    start: int,
    limit: int | None,
    *,
    earlier: bool,
    rows_per_group: int = ROWS_PER_GROUP,
) -> list[TableGroup]:
    """Cut consecutive tables into groups of so many rows, or of one table; `limit` rows in all."""
    groups: list[TableGroup] = []
    begin = start
    for file in files:
        rows = pq.read_metadata(file).num_rows
        if limit is not None:
            rows = min(rows, start + limit - begin)
        if not rows:
            continue
        if groups and groups[-1].rows + rows <= rows_per_group:
            last = groups[-1]
            groups[-1] = replace(last, files=(*last.files, file), rows=last.rows + rows)
        else:
            groups.append(TableGroup((file,), begin, rows, earlier))
        begin += rows
    return groups


def find_duplicates(
    commits: Sequence[Path],
    passed: npt.NDArray[np.bool_],
    dedup: Dedup,
    rank: Rows,
    scope: TaskScope,
    earlier: Sequence[Path] = (),
) -> DuplicateSearch:
    """Find the copies among the documents that passed, of the first `len(passed)` documents of the
    shards, and those of earlier documents whose index files are given; of copies the one of the
    least rank stays."""
    documents = len(passed)
    groups = group_tables(commits, 0, documents, earlier=False)
    sizes = [group.read(["characters"])["characters"].to_numpy() for group in groups]
    duplicates = DuplicateSearch(
        considered=passed,
        characters=np.concatenate(sizes),
        survivor=np.arange(documents),
        copy=np.full(documents, "", object),
        shared_bands=np.zeros(documents),
    )
    groups += group_tables(earlier, documents, None, earlier=True)
    if dedup.exact:
        _exact(duplicates, groups, rank, replace(scope, folder=scope.folder / "exact"))
    if dedup.near:
        _near(duplicates, groups, rank, dedup, replace(scope, folder=scope.folder / "near"))
    return replace(duplicates, survivor=duplicates.survivor[duplicates.survivor])


def _kept_mask_file(duplicates: DuplicateSearch, scope: TaskScope) -> Path:
    """A file that says of each document whether it is still there, for tasks to look up."""
    file = scope.folder / "alive.npy"
    scope.folder.mkdir(parents=True, exist_ok=True)
    write_array(file, duplicates.kept)
    return file


def _exact(
    duplicates: DuplicateSearch, groups: Sequence[TableGroup], rank: Rows, scope: TaskScope
) -> None:
    kept_mask = _kept_mask_file(duplicates, scope)
    spread = scope.run("spread", commit_exact_hashes, [(group, kept_mask) for group in groups])
    gone, _ = _mark_duplicates(
        duplicates, connected_rows(spread, None, scope), rank, "exact_duplicate"
    )
    duplicates.shared_bands[gone] = 1.0


def commit_exact_hashes(work: tuple[TableGroup, Path], commit: Path) -> None:
    """Commit the hashes of a group's texts, of those documents that are still there."""
    group, kept_mask = work
    table = group.read(["exact"])
    halves = np.frombuffer(b"".join(table["exact"].to_pylist()), "<u8").reshape(-1, 2)
    records = np.zeros(group.rows, RECORD)
    records["key"], records["check"] = halves[:, 0], halves[:, 1] & np.uint64(0xFFFFFFFF)
    records["row"] = np.arange(group.start, group.start + group.rows)
    if not group.earlier:
        records = records[np.load(kept_mask, mmap_mode="r")[group.numbers]]
    write_records(commit, records)


def _near(
    duplicates: DuplicateSearch,
    groups: Sequence[TableGroup],
    rank: Rows,
    dedup: Dedup,
    scope: TaskScope,
) -> None:
    kept_mask = _kept_mask_file(duplicates, scope)
    spread = scope.run(
        "spread", commit_band_hashes, [(group, kept_mask, dedup) for group in groups]
    )
    starts = [group.start for group in groups]
    pair_filter: PairFilter | None = None
    if dedup.verify:
        least = dedup.threshold or (1 / dedup.shape[0]) ** (1 / dedup.shape[1])
        pair_filter = JaccardAtLeast(
            RowFiles([_sidecar(c, "signatures") for c in spread], starts), least
        )
    gone, stays = _mark_duplicates(
        duplicates, connected_rows(spread, pair_filter, scope), rank, "near_duplicate"
    )
    bands = RowFiles([_sidecar(commit, "bands") for commit in spread], starts)
    for block in blocks(len(gone), 1 << 16):
        ours, theirs = bands.take(gone[block]), bands.take(stays[block])
        duplicates.shared_bands[gone[block]] = (ours == theirs).mean(axis=1)


def commit_band_hashes(work: tuple[TableGroup, Path, Dedup], commit: Path) -> None:
    """Commit the band hashes of a group's documents that are no copies yet; beside them, by row,
    the bands and (to verify) the signatures."""
    group, kept_mask, dedup = work
    table = group.read(["bands", "signature"] if dedup.verify else ["bands"])
    bands, hashed = _matrix(table["bands"], dedup.shape[0], "<u8")
    write_array(_sidecar(commit, "bands"), bands)
    if dedup.verify:
        width = dedup.shape[0] * dedup.shape[1]
        write_array(_sidecar(commit, "signatures"), _matrix(table["signature"], width, "<u4")[0])
    if not group.earlier:
        hashed &= np.load(kept_mask, mmap_mode="r")[group.numbers]
    rows = np.flatnonzero(hashed)
    records = np.zeros((len(rows), bands.shape[1]), RECORD)
    records["key"] = bands[rows]
    records["check"] = np.arange(bands.shape[1])
    records["row"] = group.start + rows[:, None]
    write_records(commit, records.reshape(-1))


def _matrix(
    column: pa.ChunkedArray, width: int, dtype: str
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]:
    """A column of bytes as an array (rows, width), zero where there are none; and where there
    are."""
    cells = column.to_pylist()
    there = np.array([cell is not None for cell in cells], np.bool_)
    matrix = np.zeros((len(cells), width), dtype)
    matrix[there] = np.frombuffer(b"".join(filter(None, cells)), dtype).reshape(-1, width)
    return matrix, there


def _sidecar(commit: Path, name: str) -> Path:
    return commit.with_name(f"{commit.name}-{name}.npy")


def _mark_duplicates(
    duplicates: DuplicateSearch, forest: Rows, rank: Rows, rule: str
) -> tuple[Rows, Rows]:
    """Enter the survivors of a forest's components; the rows that go, and those that stay."""
    size = len(rank)
    groups, earlier = np.arange(size), np.full(size, -1)
    ours = forest[:, 0] < size
    groups[forest[ours, 0]] = forest[ours, 1]
    # A component's least row is new if any is; the first earlier one takes the place of all.
    mixed = forest[~ours & (forest[:, 1] < size)][::-1]
    earlier[mixed[:, 1]] = mixed[:, 0]
    standing, taken = survivors(groups, -rank), earlier[groups]
    duplicates.copy[taken >= 0] = f"{rule}_earlier"
    goes = (standing != np.arange(size)) & (taken < 0)
    duplicates.copy[goes] = rule
    duplicates.survivor[goes] = standing[goes]
    gone = np.flatnonzero(goes | (taken >= 0))
    return gone, np.where(taken >= 0, taken, standing)[gone]
