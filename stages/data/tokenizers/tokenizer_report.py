"""Report of a trained tokenizer: compression by language, sample encodings, longest pieces."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from pipeline import panels
from stages.data.documents import Documents
from stages.data.tokenizers.sentencepiece_tokenizer import FIRST_PIECE, Tokenizer
from stages.data.tokenizers.tokenizer_evaluation import TokenCounts, is_unspaced

if TYPE_CHECKING:
    from pipeline.context import Context

MAX_LANGUAGES = 8  # with metrics of their own


def report_tokenizer(
    tokenizer: Tokenizer,
    by_language: Mapping[str, TokenCounts],
    sources: Sequence[Documents],
    ctx: Context,
) -> None:
    """Record the metrics of a tokenizer and its panels."""
    total = sum(by_language.values(), TokenCounts())
    ctx.result(
        vocab_size=len(tokenizer),
        characters_per_token=total.characters / max(1, total.tokens),
        bytes_per_token=total.bytes_per_token,
        tokens_per_word=total.tokens / max(1, total.words),
    )
    for language, counts in islice(by_language.items(), MAX_LANGUAGES):
        name = re.sub(r"\W", "_", language.lower()).strip("_") or "unknown"
        ctx.result(
            **{
                f"fertility_{name}": counts.fertility(language),
                f"bytes_per_token_{name}": counts.bytes_per_token,
            }
        )
    ctx.panel(language_panel(by_language))
    items = [
        {
            "text": " ".join(document.text.split())[:240],
            "pieces": " | ".join(map(tokenizer.piece, tokenizer.encode(document.text[:240]))),
        }
        for source in sources
        for document in islice(source, -(-4 // len(sources)))
    ]
    ctx.panel(panels.samples("Sample encodings", items))
    longest = sorted(tokenizer.pieces[FIRST_PIECE:], key=len, reverse=True)[:40]
    ctx.panel(panels.table("Longest pieces", ("piece",), [(piece,) for piece in longest]))


def language_panel(by_language: Mapping[str, TokenCounts]) -> panels.Panel:
    """Return a table of counts and compression by language."""
    rows = [
        (
            language,
            counts.documents,
            counts.characters,
            counts.tokens,
            round(counts.bytes_per_token, 3),
            round(counts.fertility(language), 3),
            "character" if is_unspaced(language) else "word",
            round(100 * counts.byte_tokens / max(1, counts.tokens), 2),
        )
        for language, counts in by_language.items()
    ]
    columns = ("language", "documents", "characters", "tokens", "bytes per token")
    return panels.table(
        "Tokens by language", (*columns, "tokens per unit", "unit", "% byte tokens"), rows
    )
