"""One split of a table of Parquet parts, as a sequence of records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, overload

import pyarrow as pa
import pyarrow.compute as pc

from stages.data import parquet_parts

Record = TypeVar("Record")


class TableSplit(Sequence[Record], ABC):
    """The records of one split, or of all if `split` is None, by position; held in memory."""

    kind: ClassVar[str]
    version: ClassVar[int]
    schema: ClassVar[pa.Schema]

    def __init__(self, path: Path, split: str | None = "train") -> None:
        self.path = Path(path)
        self.split = split
        batches = parquet_parts.read_batches(self.path, self.kind, self.version)
        table = pa.Table.from_batches(batches, self.schema)
        if split is not None:
            table = table.filter(pc.equal(table["split"], split))
        self._rows = table.combine_chunks()

    @abstractmethod
    def from_row(self, row: dict[str, Any]) -> Record:
        """Build a record from the row of the table."""

    def __len__(self) -> int:
        return int(self._rows.num_rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return self.from_row(self._rows.slice(index, 1).to_pylist()[0])
