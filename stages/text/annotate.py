"""The passes of cleaning: measure each document, decide, find the copies, write what stays.

    judge    a shard of files -> one scratch table: text, language, every rule's score, hashes
    decide   the scores of all shards and the limits -> which rule each document fails, if any
    choose   the hashes of all shards -> which document each copy stands behind
    write    the scratch tables in order -> documents/, dropped/, stats

Only the judging reads files and takes time; it runs a shard a task and knows no limit, so that
other limits need no second reading. The others see figures, hashes, and a row group of text at a
time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages.data import parquet_parts
from stages.data.hashing import hash128_hex
from stages.text.cleaning_params import Dedup, Pii
from stages.text.dedup.minhash import MinHash
from stages.text.language_id import detect_language
from stages.text.pii import mask_pii
from stages.text.rules.document_view import DocumentView
from stages.text.rules.length_rules import Lists
from stages.text.rules.rule_scorer import RuleScorer
from stages.text.sources.readers import BrokenFile, RawDocument, read
from stages.text.sources.source_listing import SourceFile
from stages.text.text_edits import Edit, build_edits
from stages.text.token_counter import WORDS, TokenCounter
from stages.text.unicode_repair import repair
from stages.text.words.word_table import shared_word_table

ANNOTATIONS = parquet_parts.versioned_schema(
    pa.schema(
        [
            *((name, pa.string()) for name in ("id", "text", "source", "lang", "meta", "broken")),
            ("confidence", pa.float64()),
            ("scores", pa.list_(pa.float64())),
            *((name, pa.string()) for name in ("masked", "changed")),
            ("characters", pa.int64()),
            ("units", pa.int64()),
            ("exact", pa.binary(16)),
            ("bands", pa.binary()),
            ("signature", pa.binary()),
            ("origin", pa.int64()),
        ]
    ),
    "Judged",
    4,
)


@dataclass(frozen=True)
class DocumentAnnotator:
    """What is measured of a document, without a word on what it must be like: what a shard's task
    is given beside its files."""

    rules: tuple[str, ...]
    lists: Lists
    edits: tuple[str, ...]
    languages: tuple[str, ...]
    pii: Pii
    dedup: Dedup
    text_column: str
    meta_columns: tuple[str, ...] = ()
    counter: TokenCounter = WORDS

    @cached_property
    def _minhash(self) -> MinHash:
        return MinHash(self.dedup.ngram, *self.dedup.shape, self.dedup.character_ngram)

    @cached_property
    def _scorer(self) -> RuleScorer:
        return RuleScorer(self.rules, self.lists)

    @cached_property
    def _edits(self) -> list[tuple[str, Edit]]:
        return build_edits(self.edits, self.languages)

    def annotator(self, file: SourceFile, position: int, raw: RawDocument) -> dict[str, Any]:
        """One row of the scratch table."""
        text, masked = mask_pii(repair(raw.text), self.pii.kinds, self.pii.regions)
        changed = {"repair": len(raw.text) - len(text)}
        lang, confidence = detect_language(text)
        for name, edit in self._edits:
            before, text = text, edit(text, lang)
            changed[name] = len(before) - len(text)
        broken = raw.broken or ("" if text.strip() else "empty")
        view = DocumentView(text, lang, shared_word_table(), raw.meta)
        return {
            "id": hash128_hex(file.source, file.place, str(position)),
            "text": text,
            "source": file.source,
            "lang": lang,
            "meta": json.dumps({"place": file.place, **raw.meta}, sort_keys=True),
            "broken": broken,
            "confidence": confidence,
            "scores": None if broken else self._scorer.scores(view),
            "masked": json.dumps(masked, sort_keys=True),
            "changed": json.dumps({name: n for name, n in changed.items() if n}),
            "characters": len(text),
            "units": self.counter.count(view),
            "exact": bytes.fromhex(hash128_hex(text)),
            "origin": file.origin,
            **self._hashes(None if broken else view),
        }

    def _hashes(self, view: DocumentView | None) -> dict[str, bytes | None]:
        signature = self._minhash.of(view.words) if view and self.dedup.near else None
        if signature is None:
            return {"bands": None, "signature": None}
        bands = self._minhash.bands_of(signature).astype("<u8").tobytes()
        return {
            "bands": bands,
            "signature": signature.astype("<u4").tobytes() if self.dedup.verify else None,
        }


def annotate_shard(work: tuple[DocumentAnnotator, list[SourceFile]], commit: Path) -> None:
    """Judge the documents of a shard's files and commit them as one table."""
    from pipeline.atomic_io import write_atomic

    annotator, files = work
    rows = (
        annotator.annotator(file, position, raw)
        for file in files
        for position, raw in enumerate(
            _read_until_broken(file, annotator), file.cut.records if file.cut else 0
        )
    )
    write_atomic(commit, parquet_parts.encode_part(rows, ANNOTATIONS, "text"), durable=False)


def _read_until_broken(file: SourceFile, annotator: DocumentAnnotator) -> Iterator[RawDocument]:
    """A file's documents; where it breaks off, a record that says why."""
    try:
        yield from read(file, annotator.text_column, annotator.meta_columns)
    except BrokenFile as error:
        yield RawDocument("", {"error": error.message}, "broken.file")


def annotated_rows(commits: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The scratch tables' rows in order, without scores and hashes, a row group at a time."""
    columns = ["id", "text", "source", "lang", "meta", "masked", "changed", "units"]
    for commit in commits:
        for batch in pq.ParquetFile(commit).iter_batches(256, columns=columns):
            yield from batch.to_pylist()


class ReadLimits:
    """How much is read: the leading documents within a number of documents and characters."""

    def __init__(self, max_documents: int | None, max_characters: int | None) -> None:
        self._limits = max_documents, max_characters
        self._sizes: dict[int, npt.NDArray[np.int64]] = {}

    def add(self, shard: int, commit: Path) -> None:
        """Take a committed shard into account."""
        column = pq.read_table(commit, columns=["characters"])["characters"]
        self._sizes[shard] = column.to_numpy()

    def within(self, shards: int) -> int:
        """How many documents of the first `shards` shards lie within the caps."""
        sizes = [self._sizes[shard] for shard in range(shards)]
        characters = np.concatenate([np.empty(0, np.int64), *sizes])
        documents, most = self._limits
        count = len(characters)
        if most is not None:
            count = int(np.searchsorted(np.cumsum(characters), most, side="right"))
        return count if documents is None else min(count, documents)

    def reached(self, shards: int) -> bool:
        """Whether the first `shards` shards hold all that may be read."""
        if self._limits == (None, None):
            return False
        return self.within(shards) < sum(len(self._sizes[shard]) for shard in range(shards))
