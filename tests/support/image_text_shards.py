"""Writer of whole splits of an ImageText folder, for tests; `image_text` writes shard by shard."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stages.data.image_text_dataset import Sample, ShardSplitter, stored_size, write_shard


def write_shards(
    samples: Iterable[Sample],
    folder: Path,
    split: str,
    *,
    shard_samples: int = 10_000,
    shard_bytes: int = 128 << 20,
) -> list[dict[str, Any]]:
    """Write the samples of a split as `SPLIT-00000.tar`, ... with their indexes.

    The same samples give the same bytes. Call `write_index` afterwards.

    Returns:
        The entries of the shards in `index.json`.

    Raises:
        BadImage: an image is of another format.
        InputError: a key or a caption cannot be stored.
    """
    splitter, shards = ShardSplitter(shard_samples, shard_bytes), list[dict[str, Any]]()
    pending: list[Sample] = []
    for sample in samples:
        if splitter.starts_shard(stored_size(sample)) and pending:
            shards.append(write_shard(pending, folder, f"{split}-{len(shards):05d}"))
            pending = []
        pending.append(sample)
    if pending:
        shards.append(write_shard(pending, folder, f"{split}-{len(shards):05d}"))
    return shards
