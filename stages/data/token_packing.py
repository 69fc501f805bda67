"""Packing of documents into token shards: tasks encode slices of row groups, then the documents are
written in shuffled order.

Order and split of documents are functions of their ids and the seed, so neither the number of
workers nor the slicing changes a byte.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages.data import token_store
from stages.data.documents import Documents
from stages.data.hashing import hash64, hash_fraction
from stages.data.tokenizers.huggingface_tokenizer import open_tokenizer

SLICES = 64  # at least, if the corpus has a megabyte for each: workers then finish together
SLICE_BYTES = (1 << 20, 16 << 20)  # of text: minimum and approximate maximum

_ENCODED = np.dtype([("end", "<u8"), ("order", "<u8"), ("split", "<f8")])


@dataclass(frozen=True)
class EncodingTask:
    """One task: some rows of a row group of a part file."""

    part: Path
    row_group: int
    rows: slice
    tokenizer: Path
    seed: int


def encoding_tasks(documents: Path, tokenizer: Path, seed: int) -> list[EncodingTask]:
    """Return tasks for all rows of Documents, in order; a function of the documents only."""
    groups = [group for part in Documents(documents).files for group in _row_groups(part)]
    total = sum(size for *_, size in groups)
    least, most = SLICE_BYTES
    target_size = min(most, max(least, total // SLICES))
    tasks = []
    for part, number, rows, size in groups:
        step = max(1, -(-rows // max(1, -(-size // target_size))))
        slices = [slice(start, min(rows, start + step)) for start in range(0, rows, step)]
        tasks += [EncodingTask(part, number, part_rows, tokenizer, seed) for part_rows in slices]
    return tasks


def _row_groups(part: Path) -> Iterator[tuple[Path, int, int, int]]:
    """Yield part, number, rows and bytes of text of each row group."""
    metadata = pq.ParquetFile(part).metadata
    text = metadata.schema.names.index("text")
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        yield part, number, group.num_rows, group.column(text).total_uncompressed_size


# A worker encodes the slices of a row group one after the other.
@lru_cache(maxsize=1)
def _row_group(part: Path, number: int) -> pa.Table:
    return pq.ParquetFile(part).read_row_group(number, columns=["id", "text"])


_open_tokenizer = lru_cache(maxsize=1)(open_tokenizer)


def encode_shard(task: EncodingTask, commit: Path) -> list[Path]:
    """Encode some rows: ids to `<commit>.bin`, one record per document to the commit file; return
    the file of the ids."""
    from pipeline.atomic_io import write_atomic

    tokenizer = _open_tokenizer(task.tokenizer)
    table = _row_group(task.part, task.row_group)[task.rows]
    dtype = token_store.token_dtype(len(tokenizer))
    encoded = [np.array(tokenizer.document(text), dtype) for text in table["text"].to_pylist()]
    index = np.empty(len(encoded), _ENCODED)
    index["end"] = np.cumsum([len(ids) for ids in encoded])
    index["order"] = [hash64(f"{task.seed} {name}") for name in table["id"].to_pylist()]
    index["split"] = [hash_fraction(f"held out {name}") for name in table["id"].to_pylist()]
    flat = np.concatenate(encoded) if encoded else np.empty(0, dtype)
    write_atomic(_ids_file(commit), flat.tobytes(), durable=False)
    buffer = io.BytesIO()
    np.save(buffer, index)
    write_atomic(commit, buffer.getvalue(), durable=False)
    return [_ids_file(commit)]


def count_tokens(commit: Path) -> int:
    """Return the number of ids of a finished task."""
    ends = np.load(commit)["end"]
    return int(ends[-1]) if len(ends) else 0


def _ids_file(commit: Path) -> Path:
    return commit.with_name(f"{commit.name}.bin")


class ShuffledLayout:
    """Shuffled order and split of all encoded documents; arrays (documents,) are in input order."""

    def __init__(self, commits: Sequence[Path], vocab_size: int, eval_fraction: float) -> None:
        self._commits = commits
        self._dtype = token_store.token_dtype(vocab_size)
        indices = [np.load(commit) for commit in commits]
        self._ends = np.concatenate([np.empty(0, np.uint64), *(i["end"] for i in indices)])
        self._starts = np.concatenate(
            [np.empty(0, np.uint64), *(np.r_[0, i["end"]][:-1] for i in indices)]
        ).astype(np.uint64)
        self._source = np.repeat(np.arange(len(indices)), [len(i) for i in indices])
        order = np.concatenate([np.empty(0, np.uint64), *(i["order"] for i in indices)])
        position = np.concatenate([np.empty(0), *(i["split"] for i in indices)])
        held_out = _eval_mask(position, eval_fraction)
        ranked = np.argsort(order, kind="stable")
        self.order = {
            "train": ranked[~held_out[ranked]],
            "eval": ranked[held_out[ranked]],
        }

    def lengths(self, split: str) -> npt.NDArray[np.int64]:
        """Return the lengths of the documents of a split in shuffled order, end tokens included."""
        rows = self.order[split]
        return (self._ends[rows] - self._starts[rows]).astype(np.int64)

    def shards(
        self, split: str, size: int
    ) -> Iterator[tuple[npt.NDArray[np.generic], npt.NDArray[np.uint64]]]:
        """Yield shards of a split with at least `size` tokens (the last may have fewer): ids and
        ends of documents."""
        lengths = self.lengths(split)
        if not len(lengths):
            return
        shard = (np.cumsum(lengths) - lengths) // size
        cuts = np.flatnonzero(np.r_[True, shard[1:] != shard[:-1]]).tolist()
        for start, stop in zip(cuts, [*cuts[1:], len(lengths)], strict=True):
            rows = self.order[split][start:stop].tolist()
            documents = [
                self._maps[int(self._source[row])][int(self._starts[row]) : int(self._ends[row])]
                for row in rows
            ]
            ids = np.concatenate(documents)
            yield ids, np.cumsum(lengths[start:stop]).astype(np.uint64)

    @cached_property
    def _maps(self) -> list[npt.NDArray[np.generic]]:
        files = [_ids_file(commit) for commit in self._commits]
        return [
            np.memmap(file, self._dtype, "r") if file.stat().st_size else np.empty(0, self._dtype)
            for file in files
        ]


def _eval_mask(position: npt.NDArray[np.float64], share: float) -> npt.NDArray[np.bool_]:
    """Select the documents below `share`; if that selects none of several, select the lowest."""
    held_out = position < share
    if share > 0 and not held_out.any() and len(position) > 1:
        held_out[np.argmin(position)] = True
    return held_out
