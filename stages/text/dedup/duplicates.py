"""Duplicates among documents: which document survives for each group of copies.

Only hashes and row numbers are read, never text. The N documents that are being cleaned have the
rows 0 to N - 1; those of earlier artifacts, which always survive, the rows after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages.text.dedup.components import Rows, survivors
from stages.text.dedup.dedup_params import DedupParams
from stages.text.dedup.hash_join import (
    RECORD,
    JaccardAtLeast,
    PairFilter,
    RowFiles,
    TaskScope,
    blocks,
    join_equal_hashes,
    write_array,
    write_records,
)

ROWS_PER_GROUP = 1 << 16  # with 14 bands a million records to sort per task

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Duplicates:
    """The outcome of deduplication for N documents; arrays of shape (N,)."""

    passed: npt.NDArray[np.bool_]
    """True if the document passed all filters; only these are compared."""
    characters: npt.NDArray[np.int64]
    survivor: Rows
    """Row of the document kept in its place; its own row for a kept document, and for a copy of a
    document of an earlier artifact."""
    reason: npt.NDArray[np.object_]
    """Reason of the drop: `exact_duplicate`, `near_duplicate`, the same with `_earlier`,
    `repeated_text`, or empty."""
    score: Floats
    """For a copy, the share of its bands that its survivor has too, or the share of its characters
    that occurred earlier."""

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """Mask of the kept documents, shape (N,)."""
        kept: npt.NDArray[np.bool_] = self.passed & (self.reason == "")
        return kept


@dataclass(frozen=True)
class TableGroup:
    """Consecutive tables of hashes, processed by one task."""

    files: tuple[Path, ...]
    start: int
    """Row of the first document."""
    rows: int
    earlier: bool = False
    """True if it is an index of an earlier artifact, whose documents are all kept."""

    def read(self, columns: list[str]) -> pa.Table:
        """Read these columns of the group's documents."""
        return pa.concat_tables(pq.read_table(file, columns=columns) for file in self.files).slice(
            0, self.rows
        )

    @property
    def row_slice(self) -> slice:
        """The rows of the documents."""
        return slice(self.start, self.start + self.rows)


def group_tables(
    files: Sequence[Path],
    start: int,
    limit: int | None,
    *,
    earlier: bool,
    rows_per_group: int = ROWS_PER_GROUP,
) -> list[TableGroup]:
    """Group consecutive tables up to `rows_per_group` rows, or one table; `limit` rows in all."""
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
    annotations: Sequence[Path],
    passed: npt.NDArray[np.bool_],
    dedup: DedupParams,
    rank: Rows,
    scope: TaskScope,
    earlier: Sequence[Path] = (),
) -> Duplicates:
    """Find copies among the documents that passed all filters.

    Args:
        annotations: the annotation tables; their first N documents count.
        passed: which documents are compared, shape (N,).
        dedup: what counts as a copy.
        rank: of the copies in a group, the one of least rank survives, shape (N,).
        scope: where tasks run and store their tables.
        earlier: index files of earlier artifacts, whose documents survive.
    """
    documents = len(passed)
    groups = group_tables(annotations, 0, documents, earlier=False)
    sizes = [group.read(["characters"])["characters"].to_numpy() for group in groups]
    duplicates = Duplicates(
        passed=passed,
        characters=np.concatenate(sizes),
        survivor=np.arange(documents),
        reason=np.full(documents, "", object),
        score=np.zeros(documents),
    )
    groups += group_tables(earlier, documents, None, earlier=True)
    if dedup.exact:
        _find_exact(duplicates, groups, rank, replace(scope, folder=scope.folder / "exact"))
    if dedup.near:
        _find_near(duplicates, groups, rank, dedup, replace(scope, folder=scope.folder / "near"))
    return replace(duplicates, survivor=duplicates.survivor[duplicates.survivor])


def _kept_mask_file(duplicates: Duplicates, scope: TaskScope) -> Path:
    """Write which documents are kept so far, for tasks to read."""
    file = scope.folder / "kept.npy"
    scope.folder.mkdir(parents=True, exist_ok=True)
    write_array(file, duplicates.kept)
    return file


def _find_exact(
    duplicates: Duplicates, groups: Sequence[TableGroup], rank: Rows, scope: TaskScope
) -> None:
    kept_mask = _kept_mask_file(duplicates, scope)
    hashes = scope.run("hashes", commit_exact_hashes, [(group, kept_mask) for group in groups])
    forest = join_equal_hashes(hashes, None, scope)
    dropped, _ = _mark_duplicates(duplicates, forest, rank, "exact_duplicate")
    duplicates.score[dropped] = 1.0


def commit_exact_hashes(work: tuple[TableGroup, Path], commit: Path) -> None:
    """Commit the hashes of the texts of a group's documents that are kept so far."""
    group, kept_mask = work
    table = group.read(["exact"])
    halves = np.frombuffer(b"".join(table["exact"].to_pylist()), "<u8").reshape(-1, 2)
    records = np.zeros(group.rows, RECORD)
    records["key"], records["check"] = halves[:, 0], halves[:, 1] & np.uint64(0xFFFFFFFF)
    records["row"] = np.arange(group.start, group.start + group.rows)
    if not group.earlier:
        records = records[np.load(kept_mask, mmap_mode="r")[group.row_slice]]
    write_records(commit, records)


def _find_near(
    duplicates: Duplicates,
    groups: Sequence[TableGroup],
    rank: Rows,
    dedup: DedupParams,
    scope: TaskScope,
) -> None:
    kept_mask = _kept_mask_file(duplicates, scope)
    hashes = scope.run(
        "hashes", commit_band_hashes, [(group, kept_mask, dedup) for group in groups]
    )
    starts = [group.start for group in groups]
    pair_filter: PairFilter | None = None
    if dedup.verify:
        bands, rows = dedup.band_shape
        threshold = dedup.threshold or (1 / bands) ** (1 / rows)
        signatures = RowFiles([_sidecar(commit, "signatures") for commit in hashes], starts)
        pair_filter = JaccardAtLeast(signatures, threshold)
    forest = join_equal_hashes(hashes, pair_filter, scope)
    dropped, kept = _mark_duplicates(duplicates, forest, rank, "near_duplicate")
    band_rows = RowFiles([_sidecar(commit, "bands") for commit in hashes], starts)
    for block in blocks(len(dropped), 1 << 16):
        left, right = band_rows.take(dropped[block]), band_rows.take(kept[block])
        duplicates.score[dropped[block]] = (left == right).mean(axis=1)


def commit_band_hashes(work: tuple[TableGroup, Path, DedupParams], commit: Path) -> list[Path]:
    """Commit the band hashes of a group's documents that are kept so far; return the files next to
    them, by row: the bands and (to verify) the signatures."""
    group, kept_mask, dedup = work
    table = group.read(["bands", "signature"] if dedup.verify else ["bands"])
    bands, hashed = _byte_matrix(table["bands"], dedup.band_shape[0], "<u8")
    sidecars = {"bands": bands}
    if dedup.verify:
        width = dedup.band_shape[0] * dedup.band_shape[1]
        sidecars["signatures"] = _byte_matrix(table["signature"], width, "<u4")[0]
    for name, array in sidecars.items():
        write_array(_sidecar(commit, name), array)
    if not group.earlier:
        hashed &= np.load(kept_mask, mmap_mode="r")[group.row_slice]
    rows = np.flatnonzero(hashed)
    records = np.zeros((len(rows), bands.shape[1]), RECORD)
    records["key"] = bands[rows]
    records["check"] = np.arange(bands.shape[1])
    records["row"] = group.start + rows[:, None]
    write_records(commit, records.reshape(-1))
    return [_sidecar(commit, name) for name in sidecars]


def _byte_matrix(
    column: pa.ChunkedArray, width: int, dtype: str
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]:
    """Return a column of bytes as an array (rows, width), zero for null cells, and which cells are
    not null, shape (rows,)."""
    cells = column.to_pylist()
    present = np.array([cell is not None for cell in cells], np.bool_)
    matrix = np.zeros((len(cells), width), dtype)
    matrix[present] = np.frombuffer(b"".join(filter(None, cells)), dtype).reshape(-1, width)
    return matrix, present


def _sidecar(commit: Path, name: str) -> Path:
    return commit.with_name(f"{commit.name}-{name}.npy")


def _mark_duplicates(
    duplicates: Duplicates, forest: Rows, rank: Rows, rule: str
) -> tuple[Rows, Rows]:
    """Enter the survivors of a forest's components; return the dropped rows and the row that is
    kept for each."""
    size = len(rank)
    groups, earlier = np.arange(size), np.full(size, -1)
    new = forest[:, 0] < size
    groups[forest[new, 0]] = forest[new, 1]
    # A component's least row is new if any is; the first earlier one takes the place of all.
    mixed = forest[~new & (forest[:, 1] < size)][::-1]
    earlier[mixed[:, 1]] = mixed[:, 0]
    survivor, in_earlier = survivors(groups, -rank), earlier[groups]
    duplicates.reason[in_earlier >= 0] = f"{rule}_earlier"
    copies = (survivor != np.arange(size)) & (in_earlier < 0)
    duplicates.reason[copies] = rule
    duplicates.survivor[copies] = survivor[copies]
    dropped = np.flatnonzero(copies | (in_earlier >= 0))
    return dropped, np.where(in_earlier >= 0, in_earlier, survivor)[dropped]
