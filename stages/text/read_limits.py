"""Limits on the text to read: the leading documents within a number of documents and characters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq


class ReadLimits:
    """Maximum numbers of documents and characters to read, over committed annotation tables."""

    def __init__(self, max_documents: int | None, max_characters: int | None) -> None:
        self._max_documents = max_documents
        self._max_characters = max_characters
        self._lengths: dict[int, npt.NDArray[np.int64]] = {}

    def add(self, shard: int, annotations: Path) -> None:
        """Add the document lengths of a committed shard."""
        column = pq.read_table(annotations, columns=["characters"])["characters"]
        self._lengths[shard] = column.to_numpy()

    def documents_within(self, shards: int) -> int:
        """Return how many documents of the first `shards` shards are within the limits."""
        lengths = [self._lengths[shard] for shard in range(shards)]
        characters = np.concatenate([np.empty(0, np.int64), *lengths])
        count = len(characters)
        if self._max_characters is not None:
            count = int(np.searchsorted(np.cumsum(characters), self._max_characters, side="right"))
        return count if self._max_documents is None else min(count, self._max_documents)

    def reached(self, shards: int) -> bool:
        """Return whether the first `shards` shards contain all that may be read."""
        if self._max_documents is None and self._max_characters is None:
            return False
        total = sum(len(self._lengths[shard]) for shard in range(shards))
        return self.documents_within(shards) < total
