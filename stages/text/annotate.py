"""Phase 1 of `clean`: measure every document of a shard of files.

    annotate   a shard of files -> one annotation table: text, language, scores, hashes
    filter     the scores of all shards and the limits -> the rule that each document fails
    dedup      the hashes of all shards -> the surviving copy of each group
    write      the annotation tables in order -> documents/, dropped/, stats.json

Only annotation reads files and takes time; it runs one shard per task and knows no limit, so that
other limits need no second pass. The other phases read scores, hashes, and a row group of text at
a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.data import parquet_parts
from stages.data.hashing import hash128_hex
from stages.text.dedup.dedup_params import DedupParams
from stages.text.dedup.minhash import MinHash
from stages.text.language_id import detect_language
from stages.text.pii import PiiParams, mask_pii
from stages.text.rules.document_view import DocumentView
from stages.text.rules.rule_scorer import RuleScorer
from stages.text.rules.word_list_rules import Blocklists
from stages.text.sources.file_io import BrokenFile
from stages.text.sources.readers import RawDocument, read
from stages.text.sources.source_file import SourceFile
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
    "Annotations",
    5,
)


@dataclass(frozen=True)
class DocumentAnnotator:
    """Measurements of a document, without limits; sent to the task of each shard."""

    rules: tuple[str, ...]
    lists: Blocklists
    edits: tuple[str, ...]
    languages: tuple[str, ...]
    pii: PiiParams
    dedup: DedupParams
    text_column: str
    meta_columns: tuple[str, ...] = ()
    counter: TokenCounter = WORDS

    @cached_property
    def _minhash(self) -> MinHash:
        sizes = self.dedup.ngram_size, self.dedup.character_ngram_size
        return MinHash(sizes[0], *self.dedup.band_shape, sizes[1])

    @cached_property
    def _scorer(self) -> RuleScorer:
        return RuleScorer(self.rules, self.lists)

    @cached_property
    def _edits(self) -> list[tuple[str, Edit]]:
        return build_edits(self.edits, self.languages)

    def annotate(self, file: SourceFile, position: int, raw: RawDocument) -> dict[str, Any]:
        """Return the row of a document in the annotation table."""
        text, masked = mask_pii(repair(raw.text), self.pii.entities, self.pii.phone_regions)
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
            **self._near_hashes(None if broken else view),
        }

    def _near_hashes(self, view: DocumentView | None) -> dict[str, bytes | None]:
        near = view is not None and self.dedup.near
        signature = self._minhash.text_signature(view.words) if view and near else None
        if signature is None:
            return {"bands": None, "signature": None}
        bands = self._minhash.band_hashes(signature).astype("<u8").tobytes()
        return {
            "bands": bands,
            "signature": signature.astype("<u4").tobytes() if self.dedup.verify else None,
        }


def annotate_shard(task: tuple[DocumentAnnotator, list[SourceFile]], commit: Path) -> None:
    """Annotate the documents of a shard's files and commit them as one table."""
    from pipeline.atomic_io import write_atomic

    annotator, files = task
    rows = (
        annotator.annotate(file, position, raw)
        for file in files
        for position, raw in enumerate(_read_until_broken(file, annotator), file.first_record)
    )
    write_atomic(commit, parquet_parts.encode_part(rows, ANNOTATIONS, "text"), durable=False)


def _read_until_broken(file: SourceFile, annotator: DocumentAnnotator) -> Iterator[RawDocument]:
    """Yield a file's documents and, where it is damaged, a broken record with the reason."""
    try:
        yield from read(file, annotator.text_column, annotator.meta_columns)
    except BrokenFile as error:
        yield RawDocument("", {"error": error.message}, "broken.file")


def annotated_rows(annotations: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield the rows of annotation tables in order, without scores and hashes."""
    columns = ["id", "text", "source", "lang", "meta", "masked", "changed", "units"]
    for table in annotations:
        for batch in pq.ParquetFile(table).iter_batches(256, columns=columns):
            yield from batch.to_pylist()
