"""Evaluation of a tokenizer on every document: lossless round trip, and number of tokens.

One row group is one task, which writes its counts by language as JSON. Fertility is tokens per
word, or tokens per character for languages that are written without spaces.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.errors import Failure
from stages.data.documents import Documents
from stages.data.formats.surrogates import replace_surrogates
from stages.data.hashing import hash_fraction
from stages.data.tokenizers.sentencepiece_tokenizer import (
    FIRST_BYTE,
    FIRST_PIECE,
    Tokenizer,
)
from stages.data.tokenizers.tokenizer_training import check_same_ids

UNSPACED = frozenset({"bo", "ja", "jpn", "km", "lo", "my", "th", "wuu", "yue", "zh", "zho"})
BATCH = 64


@dataclass(frozen=True)
class TokenizerCheck:
    """One task: a row group of a part file."""

    part: Path
    row_group: int
    tokenizer: Path
    agreement_share: float
    """Share of documents on which `tokenizer.json` is compared with `tokenizer.model`."""


@dataclass
class TokenCounts:
    """Counts over the documents of a language."""

    documents: int = 0
    characters: int = 0
    words: int = 0
    bytes: int = 0
    tokens: int = 0
    byte_tokens: int = 0
    """Tokens that stand for a single byte of a character without a piece."""

    def __add__(self, other: TokenCounts) -> TokenCounts:
        names = [field.name for field in fields(self)]
        return TokenCounts(*(getattr(self, name) + getattr(other, name) for name in names))

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per token."""
        return self.bytes / max(1, self.tokens)

    def fertility(self, lang: str) -> float:
        """Return tokens per word, or tokens per character for a language written without spaces."""
        return self.tokens / max(1, self.characters if is_unspaced(lang) else self.words)


def is_unspaced(lang: str) -> bool:
    """Return whether a language (`zh`, `zh-TW`) is written without spaces."""
    return lang.replace("_", "-").split("-")[0].lower() in UNSPACED


def check_tasks(documents: Path, tokenizer: Path, agreement_share: float) -> list[TokenizerCheck]:
    """Return one task per row group of a Documents artifact, in order."""
    return [
        TokenizerCheck(part, group, tokenizer, agreement_share)
        for part in Documents(documents).files
        for group in range(pq.ParquetFile(part).metadata.num_row_groups)
    ]


def check_shard(work: TokenizerCheck, commit: Path) -> None:
    """Encode and decode each document of a row group, and write the counts by language.

    Raises:
        Failure: decoding does not restore a document, a control id appears, or `tokenizer.json`
            produces other ids; the message names the document.
    """
    from pipeline.atomic_io import write_atomic

    tokenizer = Tokenizer(work.tokenizer)
    table = pq.ParquetFile(work.part).read_row_group(work.row_group, columns=["id", "text", "lang"])
    names, texts, langs = (table[name].to_pylist() for name in ("id", "text", "lang"))
    counts: dict[str, TokenCounts] = {}
    for start in range(0, len(texts), BATCH):
        batch = slice(start, start + BATCH)
        encoded = tokenizer.encode_batch(texts[batch])
        _check_round_trip(tokenizer, names[batch], texts[batch], encoded)
        for text, lang, ids in zip(texts[batch], langs[batch], encoded, strict=True):
            counts[lang or "?"] = counts.get(lang or "?", TokenCounts()) + _count(text, ids)
    chosen = [
        text
        for name, text in zip(names, texts, strict=True)
        if hash_fraction(f"agreement {name}") < work.agreement_share
    ]
    if chosen:
        check_same_ids(tokenizer, work.tokenizer, chosen)
    found = {lang: asdict(count) for lang, count in counts.items()}
    write_atomic(commit, json.dumps(found, sort_keys=True), durable=False)


def _check_round_trip(
    tokenizer: Tokenizer, names: Sequence[str], texts: Sequence[str], encoded: list[list[int]]
) -> None:
    for name, text, back, ids in zip(
        names, texts, tokenizer.decode_batch(encoded), encoded, strict=True
    ):
        if back != replace_surrogates(text) or min(ids, default=FIRST_BYTE) < FIRST_BYTE:
            raise Failure(
                "decoding does not restore the document",
                where=f"document {name}",
                remedy="report this document's text",
            )


def _count(text: str, ids: Sequence[int]) -> TokenCounts:
    return TokenCounts(
        documents=1,
        characters=len(text),
        words=len(text.split()),
        bytes=len(replace_surrogates(text).encode()),
        tokens=len(ids),
        byte_tokens=int(np.count_nonzero(np.asarray(ids) < FIRST_PIECE)),
    )


def merge_counts(commits: Iterable[Path]) -> dict[str, TokenCounts]:
    """Return the counts of all row groups by language, the largest language first."""
    total: dict[str, TokenCounts] = {}
    for commit in commits:
        for lang, found in json.loads(commit.read_text()).items():
            total[lang] = total.get(lang, TokenCounts()) + TokenCounts(**found)
    return dict(sorted(total.items(), key=lambda item: (-item[1].bytes, item[0])))
