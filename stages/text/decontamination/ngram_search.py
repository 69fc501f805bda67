"""Search of a corpus for the n-grams of evaluation items: one task per part of the documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.data import parquet_parts
from stages.data.documents import Document, Documents
from stages.text.decontamination.ngram_index import NgramHits, Numbers, load_searcher
from stages.text.token_counter import TokenCounter

_PLACES = ("start", "end", "ngram")
SEARCHED = parquet_parts.versioned_schema(
    pa.schema([("units", pa.int64()), *((name, pa.list_(pa.int64())) for name in _PLACES)]),
    "Searched",
    2,
)
"""One row per document: its size in words or tokens, and the places of n-grams."""

SearchTask = tuple[Path, int, Path, tuple[int, ...], TokenCounter]
"""A Documents artifact, the number of a part, the file of n-grams, their lengths in words, and the
counter of words or tokens."""


def search_part(task: SearchTask, commit: Path) -> None:
    """Search the documents of a part and commit their sizes and the places of n-grams."""
    from pipeline.atomic_io import write_atomic

    folder, part, ngrams, lengths, counter = task
    rows = []
    for document in Documents(folder).part(part):
        hits = load_searcher(ngrams, lengths).search(document.text)
        places = {name: getattr(hits, name).tolist() if hits else [] for name in _PLACES}
        rows.append({"units": counter.count_text(document.text), **places})
    write_atomic(commit, parquet_parts.encode_part(rows, SEARCHED), durable=False)


def document_frequencies(commits: Sequence[Path], ngrams: int) -> Numbers:
    """Return the number of documents that contain each n-gram, shape (ngrams,)."""
    counts = np.zeros(ngrams, np.int64)
    for commit in commits:
        column = pq.read_table(commit, columns=["ngram"])["ngram"]
        sizes = pc.list_value_length(column).to_numpy()
        documents = np.repeat(np.arange(len(sizes)), sizes)
        once = np.unique(documents * ngrams + _flatten(column))
        counts += np.bincount(once % max(ngrams, 1), minlength=ngrams)
    return counts


def searched_documents(
    documents: Documents, commits: Sequence[Path]
) -> Iterator[tuple[Document, int, NgramHits | None]]:
    """Yield the documents in order with their sizes and the places of n-grams."""
    for part, commit in enumerate(commits):
        table = pq.read_table(commit).combine_chunks()
        start, end, ngram = (_flatten(table[name]) for name in _PLACES)
        edges = np.cumsum([0, *pc.list_value_length(table["ngram"]).to_pylist()]).tolist()
        sizes = table["units"].to_pylist()
        rows = zip(documents.part(part), sizes, pairwise(edges), strict=True)
        for document, units, bounds in rows:
            found = slice(*bounds)
            hits = NgramHits(start[found], end[found], ngram[found])
            yield document, units, hits if len(hits.ngram) else None


def _flatten(column: pa.ChunkedArray) -> Numbers:
    numbers: Numbers = column.combine_chunks().flatten().to_numpy()
    return numbers
