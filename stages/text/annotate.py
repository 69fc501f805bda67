"""Phase 1 of `clean`: measure every document (`stages.curation.annotation` runs it).

    annotate   a shard of files -> one annotation table: text, language, scores, hashes
    filter     the scores of all shards and the limits -> the rule that each document fails
    dedup      the hashes of all shards -> the surviving copy of each group
    write      the annotation tables in order -> documents/, dropped/, stats.json

Only annotation reads files and takes time; it runs one shard per task and uses no limit, so that
other limits need no second pass. The other phases read scores, hashes, and a row group of text at
a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from stages.curation.annotation import Annotator
from stages.curation.broken_files import BrokenFile
from stages.data import parquet_parts
from stages.data.hashing import hash128_hex
from stages.text.dedup.dedup_params import DedupParams
from stages.text.dedup.minhash import MinHash
from stages.text.language_id import detect_language
from stages.text.pii import PiiParams, mask_pii
from stages.text.rules.document_view import DocumentView
from stages.text.rules.rule_scorer import RuleScorer
from stages.text.rules.word_list_rules import Blocklists
from stages.text.sources.readers import RawDocument, read
from stages.text.sources.source_file import SourceFile
from stages.text.text_edits import Edit, build_edits
from stages.text.token_counter import WORDS, TokenCounter
from stages.text.unicode_repair import repair
from stages.text.words.word_table import shared_word_table


@dataclass(frozen=True)
class DocumentAnnotator(Annotator[SourceFile, RawDocument]):
    """Reader and measurements of documents, without limits."""

    rules: tuple[str, ...]
    lists: Blocklists
    edits: tuple[str, ...]
    languages: tuple[str, ...]
    pii: PiiParams
    dedup: DedupParams
    text_column: str
    meta_columns: tuple[str, ...] = ()
    counter: TokenCounter = WORDS

    payload_column: ClassVar[str] = "text"
    schema: ClassVar[pa.Schema] = parquet_parts.versioned_schema(
        pa.schema(
            [
                *(
                    (name, pa.string())
                    for name in ("id", "text", "source", "lang", "meta", "broken")
                ),
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

    def read(self, piece: SourceFile) -> Iterator[RawDocument]:
        """Yield the documents of a file in order."""
        return read(piece, self.text_column, self.meta_columns)

    def broken_record(self, piece: SourceFile, error: BrokenFile) -> RawDocument:
        """Return the record that stands for the unreadable rest of a file."""
        return RawDocument("", {"error": error.message}, "broken.file")

    def annotate(self, piece: SourceFile, number: int, record: RawDocument) -> dict[str, Any]:
        """Return the row of a document in the annotation table."""
        text, masked = mask_pii(repair(record.text), self.pii.entities, self.pii.phone_regions)
        changed = {"repair": len(record.text) - len(text)}
        lang, confidence = detect_language(text)
        for name, edit in self._edits:
            before, text = text, edit(text, lang)
            changed[name] = len(before) - len(text)
        broken = record.broken or ("" if text.strip() else "empty")
        view = DocumentView(text, lang, shared_word_table(), record.meta)
        return {
            "id": hash128_hex(piece.source, piece.place, str(number)),
            "text": text,
            "source": piece.source,
            "lang": lang,
            "meta": json.dumps({"place": piece.place, **record.meta}, sort_keys=True),
            "broken": broken,
            "confidence": confidence,
            "scores": None if broken else self._scorer.scores(view),
            "masked": json.dumps(masked, sort_keys=True),
            "changed": json.dumps({name: n for name, n in changed.items() if n}),
            "characters": len(text),
            "units": self.counter.count(view),
            "exact": bytes.fromhex(hash128_hex(text)),
            "origin": piece.origin,
            **self._near_hashes(None if broken else view),
        }

    def _near_hashes(self, view: DocumentView | None) -> dict[str, bytes | None]:
        signature = None
        if view is not None and self.dedup.near:
            words = view.words
            if not self.dedup.normalize_digits:
                words = shared_word_table(equal_digits=False).words(view.text)
            signature = self._minhash.text_signature(words)
        if signature is None:
            return {"bands": None, "signature": None}
        bands = self._minhash.band_hashes(signature).astype("<u8").tobytes()
        return {
            "bands": bands,
            "signature": signature.astype("<u4").tobytes() if self.dedup.verify else None,
        }


def annotated_rows(annotations: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield the rows of annotation tables in order, without scores and hashes."""
    columns = ["id", "text", "source", "lang", "meta", "masked", "changed", "units"]
    for table in annotations:
        for batch in pq.ParquetFile(table).iter_batches(256, columns=columns):
            yield from batch.to_pylist()
