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
from stages.text.dedup import Rows, exact_survivors, near_survivors
from stages.text.language import language
from stages.text.minhash import MinHash
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
from stages.text.words import Lexicon

SCRATCH = parts.versioned(
    pa.schema(
        [
            *((name, pa.string()) for name in ("id", "text", "source", "lang", "meta", "rule")),
            ("score", pa.float64()),
            ("masked", pa.string()),
            ("characters", pa.int64()),
            ("exact", pa.binary(16)),
            ("bands", pa.binary()),
        ]
    ),
    "Judged",
    2,
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

    @cached_property
    def _lexicon(self) -> Lexicon:
        return Lexicon()

    def judge(self, file: SourceFile, position: int, raw: RawDocument) -> dict[str, Any]:
        """One row of the scratch table."""
        text, masked = mask(repair(raw.text), self.pii.kinds, self.pii.regions)
        lang, confidence = language(text)
        rule, score = (raw.broken, 0.0) if raw.broken else self._language(text, lang, confidence)
        bands = None
        if not rule:
            rule, score, bands = self._rules(text, lang)
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
            "bands": bands,
        }

    def _language(self, text: str, lang: str, confidence: float) -> tuple[str, float]:
        if not text.strip():
            return "empty", 0.0
        if self.languages and (lang not in self.languages or confidence < self.language_score):
            return "language", confidence
        return "", 0.0

    def _rules(self, text: str, lang: str) -> tuple[str, float, bytes | None]:
        failed = first_failure(length_measures(text), self.limits)
        if failed:
            return *failed, None
        words = self._lexicon.words(text)
        failed = first_failure(quality_measures(text, words, lang), self.limits) or first_failure(
            repetition_measures(text, words), self.limits
        )
        if failed:
            return *failed, None
        bands = self._minhash.band_hashes(words) if self.dedup.near else None
        return "", 0.0, None if bands is None else bands.astype("<u8").tobytes()


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


@dataclass(frozen=True)
class Census:
    """What is known of every judged document without its text; arrays of shape (N,)."""

    judged: npt.NDArray[np.bool_]
    """Passed all rules so far."""
    characters: npt.NDArray[np.int64]
    stands_for: Rows
    """The document that stays in its place; itself for one that stays."""
    copy: npt.NDArray[np.str_]
    """Why it is a copy: `exact_duplicate`, `near_duplicate` or nothing."""
    shared_bands: npt.NDArray[np.float64]
    """Of a copy: the share of its bands that its survivor has too."""


def take_census(commits: Sequence[Path], documents: int, dedup: Dedup) -> Census:
    """Find the copies among the first `documents` documents of the shards."""
    table = pa.concat_tables(
        pq.read_table(commit, columns=["rule", "characters", "exact", "bands"])
        for commit in commits
    ).slice(0, documents)
    characters = table["characters"].to_numpy()
    judged = np.array([not rule for rule in table["rule"].to_pylist()], np.bool_)
    stands_for = np.arange(len(judged))
    copy = np.full(len(judged), "", "<U15")
    shared = np.zeros(len(judged))
    if dedup.exact:
        alive = np.flatnonzero(judged)
        halves = _halves(table["exact"].take(alive).to_pylist())
        stands_for[alive] = alive[exact_survivors(halves[:, 0], halves[:, 1])]
        copy[stands_for != np.arange(len(judged))] = "exact_duplicate"
        shared[copy != ""] = 1.0
    if dedup.near:
        _near(table, dedup, characters, np.flatnonzero(judged & (copy == "")), stands_for, shared)
        copy[(copy == "") & (stands_for != np.arange(len(judged)))] = "near_duplicate"
    return Census(judged, characters, stands_for[stands_for], copy, shared)


def _near(
    table: pa.Table,
    dedup: Dedup,
    characters: npt.NDArray[np.int64],
    alive: Rows,
    stands_for: Rows,
    shared: npt.NDArray[np.float64],
) -> None:
    found = table["bands"].take(alive).to_pylist()
    rows = alive[np.array([bands is not None for bands in found], np.bool_)]
    if not len(rows):
        return
    joined = b"".join(bands for bands in found if bands)
    bands = np.frombuffer(joined, "<u8").reshape(-1, dedup.shape[0])
    standing = near_survivors(bands, characters[rows])
    stands_for[rows] = rows[standing]
    shared[rows] = (bands == bands[standing]).mean(axis=1)


def _halves(hashes: list[bytes]) -> npt.NDArray[np.uint64]:
    return np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2)


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
