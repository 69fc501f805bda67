"""The training sample of a tokenizer: documents sampled by hash, balanced by language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow.compute as pc

from stages.data import parquet_parts
from stages.data.documents import KIND, VERSION, Document
from stages.data.hashing import hash_fraction
from stages.data.tokenizers.tokenizer_training import split_lines

MAX_REPEATS = 4.0
"""Maximum sampling rate of a document, so that tiny languages stay small."""


def sample_lines(
    documents: Iterable[Document],
    characters: int,
    total: int,
    rates: Mapping[str, float] | None = None,
) -> Iterator[str]:
    """Yield the lines of a sample of about `characters` of the documents' `total` characters.

    The hash of its id decides whether a document is in the sample, so that the sample does not
    depend on the order and covers all sources. `rates` gives the expected number of repetitions of
    a document by language. Default: the same rate for all.
    """
    default_rate, rates = min(1.0, characters / max(1, total)), rates or {}
    for document in documents:
        whole, rest = divmod(rates.get(document.lang, default_rate), 1)
        for _ in range(int(whole) + (hash_fraction(f"tokenizer {document.id}") < rest)):
            yield from split_lines(document.text)


def language_sizes(folder: Path) -> Counter[str]:
    """Return the number of characters of each language of a Documents artifact."""
    sizes: Counter[str] = Counter()
    for batch in parquet_parts.read_batches(folder / "documents", KIND, VERSION, ["text", "lang"]):
        lengths = pc.utf8_length(batch["text"]).to_pylist()
        for lang, length in zip(batch["lang"].to_pylist(), lengths, strict=True):
            sizes[lang] += length
    return sizes


def language_rates(sizes: Mapping[str, int], characters: int, alpha: float) -> dict[str, float]:
    """Return the sampling rate of the documents of each language, from 0 to `MAX_REPEATS`.

    Languages that would need more repetition get `MAX_REPEATS`; the others share the rest of
    `characters` (or of the whole text, if that is less) in proportion to n ** alpha.
    """
    remaining = float(min(characters, sum(sizes.values())))
    pending = {language: size for language, size in sizes.items() if size}
    rates = dict.fromkeys(sizes, 0.0)
    while pending:
        total = sum(size**alpha for size in pending.values())
        uncapped = {name: remaining * size**alpha / total / size for name, size in pending.items()}
        capped = [name for name, rate in uncapped.items() if rate > MAX_REPEATS]
        if not capped:
            return rates | uncapped
        for name in capped:
            rates[name] = MAX_REPEATS
            remaining -= MAX_REPEATS * pending.pop(name)
    return rates
