"""The hashes of kept documents, beside them in the artifact: later cleaning looks copies up there.

index/part-00000.parquet   exact (16 bytes), bands and (where copies are verified) signature, a row
                           for each kept document, in order; no text
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from stages.data import parquet_parts
from stages.text.cleaning_params import Dedup
from stages.text.dedup.duplicates import DuplicateSearch

KIND = "DocumentIndex"
VERSION = 1
COLUMNS = ("exact", "bands", "signature")
_SHAPE = b"headwater.minhash"


def write_index(
    commits: Sequence[Path], duplicates: DuplicateSearch, dedup: Dedup, out: Path
) -> None:
    """Write the hashes of the documents that stay, from the shards' tables."""
    kept = iter(duplicates.kept.tolist())
    with parquet_parts.PartWriter(out / "index", _schema(dedup)) as index:
        for commit in commits:
            for batch in pq.ParquetFile(commit).iter_batches(4096, columns=list(COLUMNS)):
                for row, stays in zip(batch.to_pylist(), kept, strict=False):
                    if stays:
                        index.write(row)


def index_files(artifacts: Sequence[Path], dedup: Dedup) -> list[Path]:
    """The index parts of earlier Documents.

    Raises:
        InputError: one has no index, or its hashes cannot be compared with those of `dedup`.
    """
    files = []
    for artifact in artifacts:
        if not (artifact / "index").is_dir():
            raise InputError(
                "these earlier Documents hold no index of their hashes",
                where=str(artifact),
                remedy="name an artifact of `clean` that was made with dedup.index",
            )
        for file in parquet_parts.part_files(artifact / "index", KIND):
            found = parquet_parts.open_part(file, KIND, VERSION).schema_arrow.metadata.get(
                _SHAPE, b""
            )
            if dedup.near and found.decode() != dedup.described:
                raise InputError(
                    f"earlier Documents were hashed as {found.decode()}, these as "
                    f"{dedup.described}",
                    where=str(artifact),
                    remedy="deduplicate as they were, or switch off dedup.near",
                )
            files.append(file)
    return files


def _schema(dedup: Dedup) -> pa.Schema:
    columns = [("exact", pa.binary(16)), ("bands", pa.binary()), ("signature", pa.binary())]
    schema = parquet_parts.versioned_schema(pa.schema(columns), KIND, VERSION)
    return schema.with_metadata({**schema.metadata, _SHAPE: dedup.described})
