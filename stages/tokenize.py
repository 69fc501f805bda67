"""Tokenizers and token stores: `tokenize.train` (Documents -> Tokenizer), `tokenize.pack`
(Documents, Tokenizer or Model -> Tokens).

    tokenizer: {uses: tokenize.train, documents: ${clean}, vocab_size: 4096}
    tokens:    {uses: tokenize.pack, documents: ${clean}, tokenizer: ${tokenizer}}

The tokenizer is SentencePiece BPE or unigram with byte fallback, and loads with `AutoTokenizer`,
which gives the same ids. For code, `whitespace_runs: 16` makes an indentation one token; where
languages differ much in size, `language_alpha: 0.3` keeps the small ones from being starved:

    tokenizer:
      uses: tokenize.train
      documents: ${clean}
      vocab_size: 32000
      whitespace_runs: 16
      language_alpha: 0.3
      reserved: ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]

The token store is what training reads by memory map. To go on training a model that was brought in
by `pretrained`, pack with its own tokenizer, `tokenizer: ${base}`: byte-level BPE or SentencePiece
as the hub has them.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt, StringConstraints

from pipeline import panels
from pipeline.errors import InputError, Problem
from pipeline.stage import Inputs, Params, stage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pipeline.context import Context
    from stages.data.documents import Documents
    from stages.data.token_packing import ShuffledLayout
    from stages.data.token_store import TokenShard
    from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
    from stages.data.tokenizers.tokenizer_evaluation import TokenCounts
    from stages.data.tokenizers.tokenizer_training import TokenizerConfig

CONTROLS_AND_BYTES = 16 + 256
CHARACTERS_A_TOKEN = 3.5  # of English prose and code at small vocabularies; for estimates only
AGREEMENT_CHARACTERS = 500_000  # on about so many the exported tokenizer.json is checked
LANGUAGES = 8  # have figures of their own
PLANNED = 200_000  # documents that best-fit packing is tried on, for the report

ReservedName = Annotated[
    str, StringConstraints(pattern=r"^<\|?[A-Za-z][A-Za-z0-9_/.:-]{0,40}\|?>$")
]


class TrainParams(Params):
    """The vocabulary, and how much text it is learnt from."""

    vocab_size: Annotated[int, Field(gt=CONTROLS_AND_BYTES, le=1 << 20)] = 4096
    """Ids in all: 16 control ids, 256 bytes, and the pieces."""
    model: Literal["bpe", "unigram"] = "bpe"
    """How pieces are learnt: by joining pairs, or as the likeliest vocabulary of a unigram
    language model (slower to learn and to encode with)."""
    split_digits: bool = True
    """Every digit is a piece of its own."""
    whitespace_runs: Annotated[int, Field(ge=0, le=64)] = 0
    """Every run of up to so many spaces, or tabs, is one piece, as code wants; 0 leaves runs of
    spaces to the training, and tabs to bytes."""
    character_coverage: Annotated[float, Field(gt=0.9, le=1)] = 0.9995
    """The share of the sample's characters that are in pieces; the rarest are written as bytes."""
    reserved: Annotated[tuple[ReservedName, ...], Field(max_length=9)] = ()
    """Names for the reserved control tokens, in order, like `<|fim_prefix|>`."""
    sample_characters: PositiveInt = 10_000_000
    """About how many characters are learnt from; documents are chosen by hash."""
    language_alpha: Annotated[float, Field(gt=0, le=1)] = 1.0
    """A language of n characters gets a share of the sample in proportion to n to this power:
    below 1 the small ones get more, at most four times their text."""
    max_length: PositiveInt | None = None
    """The context that `tokenizer_config.json` names; null leaves it open."""

    def recipe(self) -> TokenizerConfig:
        """The same for the workshop."""
        from stages.data.tokenizers.tokenizer_training import TokenizerConfig

        return TokenizerConfig(
            model=self.model,
            split_digits=self.split_digits,
            whitespace_runs=self.whitespace_runs,
            reserved=self.reserved,
            character_coverage=self.character_coverage,
        )

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield names that are taken and runs that leave no room for pieces."""
        controls = self.recipe().controls if self.reserved else ()
        for name in sorted({name for name in controls if controls.count(name) > 1}):
            yield Problem("reserved", f"{name} names two tokens", "take another name")
        if self.whitespace_runs == 1:
            yield Problem("whitespace_runs", "one space is no run", "0 or at least 2")
        room = self.vocab_size - CONTROLS_AND_BYTES
        if 2 * self.whitespace_runs >= room:
            yield Problem(
                "whitespace_runs",
                f"a vocabulary of {self.vocab_size} has room for {room} pieces, of which runs of "
                f"spaces and of tabs would take {2 * self.whitespace_runs}",
                "lower it, or raise vocab_size",
            )

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """Learning takes about a second for a million characters."""
        return {"seconds": 1 + self.sample_characters / 1e6}


@stage("tokenize.train", inputs={"documents": "Documents*"}, output="Tokenizer", version=1)
def train(params: TrainParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Learn a SentencePiece tokenizer and export it for AutoTokenizer."""
    from stages.data.documents import Documents, read_stats
    from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
    from stages.data.tokenizers.tokenizer_sampling import sample_lines
    from stages.data.tokenizers.tokenizer_training import export_tokenizer
    from stages.data.tokenizers.tokenizer_training import train_sentencepiece as learn

    folders = inputs.paths("documents")
    sources = [Documents(folder).require_nonempty() for folder in folders]
    total = sum(read_stats(folder)["kept"]["characters"] for folder in folders)
    ctx.progress(0, 1, "steps")
    lines = sample_lines(chain(*sources), params.sample_characters, total, _rates(params, folders))
    model = learn(lines, params.vocab_size, params.recipe())
    export_tokenizer(model, out, params.max_length, params.recipe())
    found = _evaluate(params, inputs, out, ctx, AGREEMENT_CHARACTERS / max(1, total))
    _report_tokenizer(Tokenizer(out), found, sources, ctx)


def _rates(params: TrainParams, folders: Sequence[Path]) -> dict[str, float]:
    """How often a document of each language is learnt from; empty if all are alike."""
    from stages.data.tokenizers.tokenizer_sampling import language_rates, language_sizes

    if params.language_alpha == 1:
        return {}
    sizes = sum(map(language_sizes, folders), Counter[str]())
    return language_rates(sizes, params.sample_characters, params.language_alpha)


def _evaluate(
    params: TrainParams, inputs: Inputs, out: Path, ctx: Context, agreement_share: float
) -> dict[str, TokenCounts]:
    """Counts by language over all documents, each of which has come back from its tokens."""
    from stages.data.tokenizers.tokenizer_evaluation import check_shard, check_tasks, merge_counts
    from stages.distributed.shard_tasks import run_shards

    works = [
        work
        for folder in inputs.paths("documents")
        for work in check_tasks(folder, out, agreement_share)
    ]
    done = 0

    def on_commit(shard: int) -> None:
        nonlocal done
        done += 1
        ctx.progress(done + 1, len(works) + 1, "steps")

    folder = ctx.scratch / "checked"
    commits = run_shards(
        check_shard, works, folder, workers=params.workers, ctx=ctx, on_commit=on_commit
    )
    return merge_counts(commits)


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
    inputs={"documents": "Documents", "tokenizer": "Tokenizer|Model"},
    output="Tokens",
    version=2,
)
def pack(params: PackParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Encode documents into a shuffled, memory-mapped token store with held-out documents."""
    from stages.data.token_packing import ShuffledLayout
    from stages.data.token_store import write_index
    from stages.data.tokenizers.huggingface_tokenizer import open_tokenizer

    commits = _encode(params, inputs, ctx)
    tokenizer = open_tokenizer(inputs.path("tokenizer"))
    layout = ShuffledLayout(commits, len(tokenizer), params.eval_share)
    if not len(layout.order["train"]):
        raise InputError(
            "no document is left to train on",
            where="eval_share",
            remedy="lower eval_share, or read more documents",
        )
    for leftover in out.iterdir():
        leftover.unlink()
    splits = {split: _write_split(layout, split, params, out, ctx) for split in ("train", "eval")}
    write_index(
        out,
        vocab_size=len(tokenizer),
        eos_id=tokenizer.eos_id,
        splits=splits,
        tokenizer=tokenizer.digest,
    )
    _report_tokens(layout, ctx)


def _encode(params: PackParams, inputs: Inputs, ctx: Context) -> list[Path]:
    from stages.data.token_packing import count_tokens, encode_shard, encoding_tasks
    from stages.distributed.shard_tasks import run_shards

    works = encoding_tasks(inputs.path("documents"), inputs.path("tokenizer"), params.seed)
    folder = ctx.scratch / "encodings"
    started, tokens, done = time.monotonic(), 0, 0

    def on_commit(shard: int) -> None:
        nonlocal tokens, done
        tokens += count_tokens(folder / f"{shard:06d}")
        done += 1
        rate = tokens / max(1e-3, time.monotonic() - started)
        ctx.progress(done, len(works), "shards", tokens_per_second=rate)

    return run_shards(
        encode_shard, works, folder, workers=params.workers, ctx=ctx, on_commit=on_commit
    )


def _write_split(
    layout: ShuffledLayout, split: str, params: PackParams, out: Path, ctx: Context
) -> list[TokenShard]:
    from stages.data.token_store import write_shard

    written = []
    for number, (ids, ends) in enumerate(layout.shards(split, params.shard_tokens)):
        written.append(write_shard(out, f"{split}-{number:05d}", ids, ends))
        ctx.check_cancelled()
    return written


def _report_tokenizer(
    tokenizer: Tokenizer,
    found: Mapping[str, TokenCounts],
    sources: Sequence[Documents],
    ctx: Context,
) -> None:
    from stages.data.tokenizers.tokenizer_evaluation import TokenCounts

    total = sum(found.values(), TokenCounts())
    ctx.result(
        vocab_size=len(tokenizer),
        characters_per_token=total.characters / max(1, total.tokens),
        bytes_per_token=total.bytes_per_token,
        tokens_per_word=total.tokens / max(1, total.words),
    )
    for lang, counts in islice(found.items(), LANGUAGES):
        name = re.sub(r"\W", "_", lang.lower()).strip("_") or "unknown"
        ctx.result(
            **{
                f"fertility_{name}": counts.fertility(lang),
                f"bytes_per_token_{name}": counts.bytes_per_token,
            }
        )
    ctx.panel(_languages(found))
    items = [
        {
            "text": " ".join(document.text.split())[:240],
            "pieces": " | ".join(map(tokenizer.piece, tokenizer.encode(document.text[:240]))),
        }
        for source in sources
        for document in islice(source, -(-4 // len(sources)))
    ]
    ctx.panel(panels.samples("How the tokenizer cuts text", items))
    longest = sorted(tokenizer.pieces[CONTROLS_AND_BYTES:], key=len, reverse=True)[:40]
    ctx.panel(panels.table("Longest pieces", ("piece",), [(piece,) for piece in longest]))


def _languages(found: Mapping[str, TokenCounts]) -> panels.Panel:
    from stages.data.tokenizers.tokenizer_evaluation import is_unspaced

    rows = [
        (
            lang,
            counts.documents,
            counts.characters,
            counts.tokens,
            round(counts.bytes_per_token, 3),
            round(counts.fertility(lang), 3),
            "character" if is_unspaced(lang) else "word",
            round(100 * counts.byte_tokens / max(1, counts.tokens), 2),
        )
        for lang, counts in found.items()
    ]
    columns = ("language", "documents", "characters", "tokens", "bytes a token")
    return panels.table(
        "Tokens by language", (*columns, "tokens a unit", "unit", "% byte tokens"), rows
    )


def _report_tokens(layout: ShuffledLayout, ctx: Context) -> None:
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
    ctx.panel(_best_fit(layout.lengths("train")[:PLANNED]))
    counts, _ = np.histogram(layout.lengths("train"), edges)
    ctx.panel(panels.histogram("Tokens of a document", edges, counts.tolist()))


def _best_fit(lengths: npt.NDArray[np.int64]) -> panels.Panel:
    """What best-fit packing would cost and save, by context."""
    import numpy as np

    from stages.data.best_fit_packing import plan_packing

    ends, rows = np.cumsum(lengths), []
    for context in (2**k for k in range(7, 15)):
        found = plan_packing(ends, context)
        padding = 1 - ends[-1] / (found.samples * context)
        windows = np.count_nonzero((ends - lengths) // context != (ends - 1) // context)
        cut = [round(100 * count / len(ends), 2) for count in (windows, found.cut)]
        rows.append((context, found.samples, round(100 * float(padding), 3), *cut))
    columns = ("context", "samples", "% padding", "% documents cut by windows", "% cut by best fit")
    return panels.table(f"Packing of {len(ends):,} documents", columns, rows)
