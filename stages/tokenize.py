"""Tokenizers and token stores: `tokenize.train` (Documents -> Tokenizer), `tokenize.pack`
(Documents, Tokenizer -> Tokens).

    tokenizer: {uses: tokenize.train, documents: ${clean}, vocab_size: 4096}
    tokens:    {uses: tokenize.pack, documents: ${clean}, tokenizer: ${tokenizer}}

The tokenizer is SentencePiece BPE with byte fallback, and loads with `AutoTokenizer`, which gives
the same ids. The token store is what training reads by memory map.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt

from pipeline import panels
from pipeline.errors import InputError
from pipeline.stage import Inputs, Params, stage

if TYPE_CHECKING:
    from pipeline.context import Context
    from stages.data.documents import Documents
    from stages.data.packing import Layout
    from stages.data.tokenizer import Tokenizer
    from stages.data.tokens import Shard

CONTROLS_AND_BYTES = 16 + 256
CHARACTERS_A_TOKEN = 3.5  # of English prose and code at small vocabularies; for estimates only


class TrainParams(Params):
    """The vocabulary, and how much text it is learnt from."""

    vocab_size: Annotated[int, Field(gt=CONTROLS_AND_BYTES, le=1 << 20)] = 4096
    """Ids in all: 16 control ids, 256 bytes, and the pieces."""
    sample_characters: PositiveInt = 10_000_000
    """About how many characters are learnt from; documents are chosen by hash."""
    max_length: PositiveInt | None = None
    """The context that `tokenizer_config.json` names; null leaves it open."""

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """Learning takes about a second for a million characters."""
        return {"seconds": 1 + self.sample_characters / 1e6}


@stage("tokenize.train", inputs={"documents": "Documents"}, output="Tokenizer", version=1)
def train(params: TrainParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Learn a SentencePiece tokenizer and export it for AutoTokenizer."""
    from stages.data.documents import Documents, read_stats
    from stages.data.tokenizer import Tokenizer
    from stages.data.tokenizer_training import agreement, export, sample_lines
    from stages.data.tokenizer_training import train as learn

    documents = Documents(inputs.path("documents")).require_some()
    total = read_stats(inputs.path("documents"))["kept"]["characters"]
    ctx.progress(0, 2, "steps")
    model = learn(sample_lines(documents, params.sample_characters, total), params.vocab_size)
    export(model, out, params.max_length)
    ctx.progress(1, 2, "steps")
    tokenizer = Tokenizer(out)
    texts = _texts(documents)
    agreement(tokenizer, out, texts)
    _report_tokenizer(tokenizer, texts, ctx)
    ctx.progress(2, 2, "steps")


class PackParams(Params):
    """How documents become a store of tokens."""

    eval_share: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """The share of documents that is held out, chosen by the hash of their ids."""
    seed: int = 0
    """Shuffles the documents."""
    shard_tokens: PositiveInt = 1 << 26
    """Tokens of a file, at least (but for the last)."""

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """Tokens and disk, where the documents' characters are known."""
        characters = getattr(upstream.get("documents"), "max_characters", None)
        if not characters:
            return {}
        tokens = characters / CHARACTERS_A_TOKEN
        return {"tokens": tokens, "disk_bytes": 2 * tokens, "seconds": 1 + characters / 3e6}


@stage(
    "tokenize.pack",
    inputs={"documents": "Documents", "tokenizer": "Tokenizer"},
    output="Tokens",
    version=1,
)
def pack(params: PackParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Encode documents into a shuffled, memory-mapped token store with held-out documents."""
    from stages.data.packing import Layout
    from stages.data.tokenizer import EOS, Tokenizer
    from stages.data.tokens import write_index

    commits = _encode(params, inputs, ctx)
    vocab_size = len(Tokenizer(inputs.path("tokenizer")))
    layout = Layout(commits, vocab_size, params.eval_share)
    if not len(layout.order["train"]):
        raise InputError(
            "no document is left to train on",
            where="eval_share",
            remedy="lower eval_share, or read more documents",
        )
    for leftover in out.iterdir():
        leftover.unlink()
    splits = {split: _write_split(layout, split, params, out, ctx) for split in ("train", "eval")}
    write_index(out, vocab_size=vocab_size, eos_id=EOS, splits=splits)
    _report_tokens(layout, ctx)


def _encode(params: PackParams, inputs: Inputs, ctx: Context) -> list[Path]:
    from stages.data.packing import encode_shard, encodings, tokens_in
    from stages.data.shards import run_shards

    works = encodings(inputs.path("documents"), inputs.path("tokenizer"), params.seed)
    folder = ctx.scratch / "encoded"
    started, tokens, done = time.monotonic(), 0, 0

    def on_commit(shard: int) -> None:
        nonlocal tokens, done
        tokens += tokens_in(folder / f"{shard:06d}")
        done += 1
        rate = tokens / max(1e-3, time.monotonic() - started)
        ctx.progress(done, len(works), "shards", tokens_per_second=rate)

    return run_shards(
        encode_shard, works, folder, workers=params.workers, ctx=ctx, on_commit=on_commit
    )


def _write_split(
    layout: Layout, split: str, params: PackParams, out: Path, ctx: Context
) -> list[Shard]:
    from stages.data.tokens import write_shard

    written = []
    for number, (ids, ends) in enumerate(layout.shards(split, params.shard_tokens)):
        written.append(write_shard(out, f"{split}-{number:05d}", ids, ends))
        ctx.check_cancelled()
    return written


def _texts(documents: Documents, characters: int = 500_000) -> list[str]:
    """The first documents, up to that many characters: what figures are taken from."""
    texts: list[str] = []
    for document in documents:
        texts.append(document.text)
        characters -= len(document.text)
        if characters < 0:
            break
    return texts


def _report_tokenizer(tokenizer: Tokenizer, texts: list[str], ctx: Context) -> None:
    tokens = sum(map(len, tokenizer.encode_batch(texts)))
    characters, size = sum(map(len, texts)), sum(len(text.encode()) for text in texts)
    words = sum(len(text.split()) for text in texts)
    ctx.result(
        vocab_size=len(tokenizer),
        characters_per_token=characters / max(1, tokens),
        bytes_per_token=size / max(1, tokens),
        tokens_per_word=tokens / max(1, words),
    )
    shown = (" ".join(text.split())[:240] for text in texts[:4])
    ctx.panel(
        panels.samples(
            "How the tokenizer cuts text",
            [
                {"text": text, "pieces": " | ".join(map(tokenizer.piece, tokenizer.encode(text)))}
                for text in shown
            ],
        )
    )
    longest = sorted(tokenizer.pieces[CONTROLS_AND_BYTES:], key=len, reverse=True)[:40]
    ctx.panel(panels.table("Longest pieces", ("piece",), [(piece,) for piece in longest]))


def _report_tokens(layout: Layout, ctx: Context) -> None:
    import numpy as np

    rows: list[tuple[str, int, int]] = []
    results: dict[str, float] = {}
    for split in ("train", "eval"):
        lengths = layout.lengths(split)
        rows.append((split, len(lengths), int(lengths.sum())))
        results |= {f"{split}_tokens": int(lengths.sum()), f"{split}_documents": len(lengths)}
    ctx.result(**results)
    ctx.panel(panels.table("Token store", ("split", "documents", "tokens"), rows))
    edges = [2**k for k in range(4, 21)]
    counts, _ = np.histogram(layout.lengths("train"), edges)
    ctx.panel(panels.histogram("Tokens of a document", edges, counts.tolist()))
