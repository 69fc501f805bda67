"""Decontaminated documents in order -> documents/, dropped/, matches/, stats.json."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from stages.data import documents, parquet_parts
from stages.data.documents import Documents
from stages.text.decontamination.contamination_detector import ContaminationDetector, SpanRemoval
from stages.text.decontamination.decontamination_stats import CONTAMINATED, DecontaminationStats
from stages.text.decontamination.ngram_search import searched_documents
from stages.text.token_counter import WORDS, TokenCounter

MATCHES = parquet_parts.versioned_schema(
    pa.schema(
        [
            *((name, pa.string()) for name in ("document", "source", "set", "item")),
            ("overlap", pa.float64()),
            ("start", pa.int64()),
            ("end", pa.int64()),
        ]
    ),
    "Matches",
    1,
)


def write_decontaminated(
    folder: Path,
    searched: Sequence[Path],
    detector: ContaminationDetector,
    removal: SpanRemoval | None,
    out: Path,
    counter: TokenCounter = WORDS,
) -> DecontaminationStats:
    """Write kept and dropped documents in order, with their matches and counts.

    Args:
        folder: a Documents artifact.
        searched: the tables of n-grams in its parts.
        detector: decides which documents are contaminated.
        removal: what is removed from contaminated documents; None drops them.
        out: the new artifact's folder.
        counter: counts words or tokens.
    """
    for table in ("documents", "dropped", "matches"):
        shutil.rmtree(out / table, ignore_errors=True)
    stats, index = DecontaminationStats(counter=counter), detector.index
    with (
        documents.documents_writer(out) as kept,
        documents.dropped_writer(out) as dropped,
        parquet_parts.PartWriter(out / "matches", MATCHES) as matches,
    ):
        for document, units, hits in searched_documents(Documents(folder), searched):
            contamination = detector.detect(hits) if hits else None
            row = {name: getattr(document, name) for name in documents.COLUMNS}
            if contamination is None:
                stats.record(document, units, document.text)
                kept.write(row)
                continue
            stats.record_contamination(document, contamination, index)
            for match in contamination.matches:
                item = index.items[match.item]
                matches.write(
                    {
                        "document": document.id,
                        "source": document.source,
                        "set": item.source,
                        "item": item.place,
                        "overlap": match.overlap,
                        "start": match.start,
                        "end": match.end,
                    }
                )
            text = removal.apply(document.text, contamination.spans) if removal else None
            stats.record(document, units, text)
            if text is None:
                dropped.write({**row, "rule": CONTAMINATED, "score": contamination.overlap})
            else:
                kept.write({**row, "text": text})
    documents.write_stats(out, stats.as_dict(index))
    return stats
