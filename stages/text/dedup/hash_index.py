"""Hashes of kept documents, stored in their artifact: a later `clean` finds copies of them there.

index/part-00000.parquet   exact (16 bytes), bands and (where duplicates are verified) signature:
                           one row per kept document, in order; no text
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from stages.data import parquet_parts
from stages.text.dedup.dedup_params import DedupParams
from stages.text.dedup.duplicates import Duplicates

KIND = "DocumentIndex"
VERSION = 1
COLUMNS = ("exact", "bands", "signature")
_SHAPE = b"headwater.minhash"


def write_index(
    annotations: Sequence[Path], duplicates: Duplicates, dedup: DedupParams, out: Path
) -> None:
    """Write the hashes of the kept documents, from the annotation tables."""
    kept = iter(duplicates.kept.tolist())
    with parquet_parts.PartWriter(out / "index", _schema(dedup)) as index:
        for table in annotations:
            for batch in pq.ParquetFile(table).iter_batches(4096, columns=list(COLUMNS)):
                for row, is_kept in zip(batch.to_pylist(), kept, strict=False):
                    if is_kept:
                        index.write(row)


def index_files(artifacts: Sequence[Path], dedup: DedupParams) -> list[Path]:
    """Return the index parts of earlier Documents.

    Raises:
        InputError: one has no index, or its hashes are not comparable with those of `dedup`.
    """
    files = []
    for artifact in artifacts:
        if not (artifact / "index").is_dir():
            raise InputError(
                "these earlier Documents have no index of their hashes",
                where=str(artifact),
                remedy="name an artifact of `clean` made with dedup.save_index",
            )
        for file in parquet_parts.part_files(artifact / "index", KIND):
            found = parquet_parts.open_part(file, KIND, VERSION).schema_arrow.metadata.get(
                _SHAPE, b""
            )
            if dedup.near and found.decode() != dedup.hash_description:
                raise InputError(
                    f"earlier Documents were hashed as {found.decode()}, these as "
                    f"{dedup.hash_description}",
                    where=str(artifact),
                    remedy="use the same dedup settings, or switch off dedup.near",
                )
            files.append(file)
    return files


def _schema(dedup: DedupParams) -> pa.Schema:
    columns = [("exact", pa.binary(16)), ("bands", pa.binary()), ("signature", pa.binary())]
    schema = parquet_parts.versioned_schema(pa.schema(columns), KIND, VERSION)
    return schema.with_metadata({**schema.metadata, _SHAPE: dedup.hash_description})
