"""The text that a tokenizer is learnt from: a sample of the documents, balanced by language."""

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
"""How often a document is learnt from, at most: a language of three documents stays small."""


def sample_lines(
    documents: Iterable[Document],
    characters: int,
    total: int,
    rates: Mapping[str, float] | None = None,
) -> Iterator[str]:
    """Lines of a sample of about `characters` of the documents' `total` characters.

    A document is taken or left by the hash of its id, so that the sample is the same in any
    order and spread over all sources. With `rates` it is taken as often as its language's says.
    """
    everywhere, rates = min(1.0, characters / max(1, total)), rates or {}
    for document in documents:
        whole, rest = divmod(rates.get(document.lang, everywhere), 1)
        for _ in range(int(whole) + (hash_fraction(f"tokenizer {document.id}") < rest)):
            yield from split_lines(document.text)


def language_sizes(folder: Path) -> Counter[str]:
    """Characters of each language of a Documents artifact."""
    sizes: Counter[str] = Counter()
    for batch in parquet_parts.read_batches(folder / "documents", KIND, VERSION, ["text", "lang"]):
        lengths = pc.utf8_length(batch["text"]).to_pylist()
        for lang, length in zip(batch["lang"].to_pylist(), lengths, strict=True):
            sizes[lang] += length
    return sizes


def language_rates(sizes: Mapping[str, int], characters: int, alpha: float) -> dict[str, float]:
    """How often a document of each language is taken, from 0 to `REPEATS`.

    Languages that would need more repetition are held at `REPEATS`, and the others share what is
    left of `characters` (or of all that there is, if that is less) in proportion to n ** alpha.
    """
    left = float(min(characters, sum(sizes.values())))
    open_ = {language: size for language, size in sizes.items() if size}
    rates = dict.fromkeys(sizes, 0.0)
    while open_:
        total = sum(size**alpha for size in open_.values())
        wanted = {name: left * size**alpha / total / size for name, size in open_.items()}
        short = [name for name, rate in wanted.items() if rate > MAX_REPEATS]
        if not short:
            return rates | wanted
        for name in short:
            rates[name] = MAX_REPEATS
            left -= MAX_REPEATS * open_.pop(name)
    return rates
