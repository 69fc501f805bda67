"""The three passes of cleaning: judge each document, find the copies, write what stays.

    judge    a shard of files -> one scratch table: text, language, first failed rule, hashes
    choose   the hashes of all shards -> which document each copy stands behind
    write    the scratch tables in order -> documents/, dropped/, stats

Only the judging reads files and takes time; it runs a shard a task. The other two see hashes and
one row group of text at a time.
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

from stages.data import parts
from stages.data.hashing import name128
from stages.text.language import language
from stages.text.minhash import MinHash, Signature
from stages.text.pii import mask
from stages.text.readers import BrokenFile, RawDocument, read
from stages.text.repair import repair
from stages.text.rules import (
    Limit,
    first_failure,
    length_measures,
    quality_measures,
    repetition_measures,
)
from stages.text.settings import Dedup, Pii
from stages.text.sources import SourceFile
from stages.text.words import lexicon

SCRATCH = parts.versioned(
    pa.schema(
        [
            *((name, pa.string()) for name in ("id", "text", "source", "lang", "meta", "rule")),
            ("score", pa.float64()),
            ("masked", pa.string()),
            ("characters", pa.int64()),
            ("exact", pa.binary(16)),
            ("bands", pa.binary()),
            ("signature", pa.binary()),
            ("origin", pa.int64()),
            ("confidence", pa.float64()),
        ]
    ),
    "Judged",
    3,
)


@dataclass(frozen=True)
class Judge:
    """How a document is judged: what a shard's task is given beside its files."""

    limits: dict[str, Limit]
    languages: tuple[str, ...]
    language_score: float
    pii: Pii
    dedup: Dedup
    text_column: str

    @cached_property
    def _minhash(self) -> MinHash:
        return MinHash(self.dedup.ngram, *self.dedup.shape, self.dedup.character_ngram)

    def judge(self, file: SourceFile, position: int, raw: RawDocument) -> dict[str, Any]:
        """One row of the scratch table."""
        text, masked = mask(repair(raw.text), self.pii.kinds, self.pii.regions)
        lang, confidence = language(text)
        rule, score = (raw.broken, 0.0) if raw.broken else self._language(text, lang, confidence)
        signature = None
        if not rule:
            rule, score, signature = self._rules(text, lang)
        return {
            "id": name128(file.source, file.place, str(position)),
            "text": text,
            "source": file.source,
            "lang": lang,
            "meta": json.dumps({"place": file.place, **raw.meta}, sort_keys=True),
            "rule": rule,
            "score": score,
            "masked": json.dumps(masked, sort_keys=True),
            "characters": len(text),
            "exact": bytes.fromhex(name128(text)),
            "origin": file.origin,
            "confidence": confidence,
            **self._hashes(signature),
        }

    def _hashes(self, signature: Signature | None) -> dict[str, bytes | None]:
        if signature is None:
            return {"bands": None, "signature": None}
        bands = self._minhash.bands_of(signature).astype("<u8").tobytes()
        return {
            "bands": bands,
            "signature": signature.astype("<u4").tobytes() if self.dedup.verify else None,
        }

    def _language(self, text: str, lang: str, confidence: float) -> tuple[str, float]:
        if not text.strip():
            return "empty", 0.0
        if self.languages and (lang not in self.languages or confidence < self.language_score):
            return "language", confidence
        return "", 0.0

    def _rules(self, text: str, lang: str) -> tuple[str, float, Signature | None]:
        failed = first_failure(length_measures(text), self.limits)
        if failed:
            return *failed, None
        words = lexicon().words(text)
        failed = first_failure(quality_measures(text, words, lang), self.limits) or first_failure(
            repetition_measures(text, words), self.limits
        )
        if failed:
            return *failed, None
        return "", 0.0, self._minhash.of(words) if self.dedup.near else None


def judge_shard(work: tuple[Judge, list[SourceFile]], commit: Path) -> None:
    """Judge the documents of a shard's files and commit them as one table."""
    from pipeline.disk import write_atomic

    judge, files = work
    rows = [
        judge.judge(file, position, raw)
        for file in files
        for position, raw in enumerate(_tolerated(file, judge.text_column))
    ]
    write_atomic(commit, parts.encode(rows, SCRATCH), durable=False)


def _tolerated(file: SourceFile, text_column: str) -> Iterator[RawDocument]:
    """A file's documents; where it breaks off, a record that says why."""
    try:
        yield from read(file, text_column)
    except BrokenFile as error:
        yield RawDocument("", {"error": error.message}, "broken.file")


def judged_rows(commits: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """The scratch tables' rows in order, without the hashes, a row group at a time."""
    columns = ["id", "text", "source", "lang", "meta", "rule", "score", "masked"]
    for commit in commits:
        for batch in pq.ParquetFile(commit).iter_batches(256, columns=columns):
            yield from batch.to_pylist()


class Caps:
    """How much is read: the leading documents within a number of documents and characters."""

    def __init__(self, max_documents: int | None, max_characters: int | None) -> None:
        self._most = max_documents, max_characters
        self._sizes: dict[int, npt.NDArray[np.int64]] = {}

    def add(self, shard: int, commit: Path) -> None:
        """Take a committed shard into account."""
        column = pq.read_table(commit, columns=["characters"])["characters"]
        self._sizes[shard] = column.to_numpy()

    def within(self, shards: int) -> int:
        """How many documents of the first `shards` shards lie within the caps."""
        sizes = [self._sizes[shard] for shard in range(shards)]
        characters = np.concatenate([np.empty(0, np.int64), *sizes])
        documents, most = self._most
        count = len(characters)
        if most is not None:
            count = int(np.searchsorted(np.cumsum(characters), most, side="right"))
        return count if documents is None else min(count, documents)

    def reached(self, shards: int) -> bool:
        """Whether the first `shards` shards hold all that may be read."""
        if self._most == (None, None):
            return False
        return self.within(shards) < sum(len(self._sizes[shard]) for shard in range(shards))
