"""Tokenizers and token stores: `tokenize.train` (Documents -> Tokenizer) and `tokenize.pack`
(Documents, Tokenizer or Model -> Tokens).

    tokenizer: {uses: tokenize.train, documents: ${clean}, vocab_size: 4096}
    tokens:    {uses: tokenize.pack, documents: ${clean}, tokenizer: ${tokenizer}}

The tokenizer is a SentencePiece BPE or unigram model with byte fallback. `AutoTokenizer` loads it
and produces the same ids. For code, `whitespace_runs: 16` makes every indentation one token; for
languages of very different sizes, `language_alpha: 0.3` gives the small ones a larger share:

    tokenizer:
      uses: tokenize.train
      documents: ${clean}
      vocab_size: 32000
      whitespace_runs: 16
      language_alpha: 0.3
      additional_special_tokens: ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]

Training reads the token store by memory map. To continue the training of a model that `pretrained`
imported, pack with its own tokenizer, `tokenizer: ${base}`: byte-level BPE or SentencePiece from
the Hugging Face Hub.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, StringConstraints

from pipeline.errors import InputError, Problem
from pipeline.stage import Inputs, Params, stage

if TYPE_CHECKING:
    from pipeline.context import Context
    from stages.data.token_store import TokenShard
    from stages.data.tokenizers.tokenizer_evaluation import TokenCounts
    from stages.data.tokenizers.tokenizer_training import TokenizerConfig

CONTROLS_AND_BYTES = 16 + 256
CHARACTERS_PER_TOKEN = 3.5  # of English prose and code at small vocabularies; for estimates only
AGREEMENT_CHARACTERS = 500_000  # sample size for comparing tokenizer.json with tokenizer.model

SpecialTokenName = Annotated[
    str, StringConstraints(pattern=r"^<\|?[A-Za-z][A-Za-z0-9_/.:-]{0,40}\|?>$")
]


class TokenizerTrainParams(Params):
    """Parameters of `tokenize.train`: the vocabulary, and the text that it is learned from."""

    renamed: ClassVar[dict[str, str]] = {
        "model": "model_type",
        "reserved": "additional_special_tokens",
        "max_length": "model_max_length",
    }

    vocab_size: Annotated[int, Field(gt=CONTROLS_AND_BYTES, le=1 << 20)] = 4096
    """Vocabulary size: 16 control tokens, 256 bytes, and the learned pieces. Default: 4096."""
    model_type: Literal["bpe", "unigram"] = "bpe"
    """Algorithm: `bpe` merges pairs; `unigram` selects the vocabulary of maximum likelihood under a
    unigram language model (slower to train and to encode with). Default: bpe."""
    split_digits: bool = True
    """Encoding of every digit as one piece. Default: true."""
    whitespace_runs: Annotated[int, Field(ge=0, le=64)] = 0
    """Longest run of spaces, or of tabs, that is one piece; useful for code. 0 leaves runs of
    spaces to the training, and tabs to bytes. Default: 0."""
    character_coverage: Annotated[float, Field(gt=0.9, le=1)] = 0.9995
    """Share of the sample's characters that pieces cover; rarer characters are encoded as bytes.
    Default: 0.9995."""
    additional_special_tokens: Annotated[tuple[SpecialTokenName, ...], Field(max_length=9)] = ()
    """Names of the reserved control tokens, in order, such as `<|fim_prefix|>`; in `transformers`
    they begin with U+FDD0, so that no text spells one. Default: none."""
    sample_characters: PositiveInt = 10_000_000
    """Size of the training sample, characters; documents are sampled by hash.
    Default: 10 million."""
    language_alpha: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Exponent of language sampling: a language with n characters gets a share proportional to
    n ** alpha, at most four times its text. Default: 1 (proportional)."""
    model_max_length: PositiveInt | None = None
    """Context length written to `tokenizer_config.json`, tokens. Default: unlimited."""

    def tokenizer_config(self) -> TokenizerConfig:
        """Return the fields that training and export need."""
        from stages.data.tokenizers.tokenizer_training import TokenizerConfig

        return TokenizerConfig(
            model_type=self.model_type,
            split_digits=self.split_digits,
            whitespace_runs=self.whitespace_runs,
            additional_special_tokens=self.additional_special_tokens,
            character_coverage=self.character_coverage,
        )

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield duplicate token names, and whitespace runs that leave no room for pieces."""
        if self.additional_special_tokens:
            names = self.tokenizer_config().control_tokens
            for name in sorted({name for name in names if names.count(name) > 1}):
                message = f"{name} names two tokens"
                yield Problem("additional_special_tokens", message, "choose another name")
        if self.whitespace_runs == 1:
            yield Problem("whitespace_runs", "a run has at least 2 spaces", "set 0, or 2 or more")
        room = self.vocab_size - CONTROLS_AND_BYTES
        if 2 * self.whitespace_runs >= room:
            yield Problem(
                "whitespace_runs",
                f"a vocabulary of {self.vocab_size} has room for {room} pieces, but runs of spaces "
                f"and tabs would take {2 * self.whitespace_runs}",
                "lower it, or raise vocab_size",
            )

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """Estimate the time: about one second per million characters."""
        return {"seconds": 1 + self.sample_characters / 1e6}


@stage(
    "tokenize.train",
    inputs={"documents": "Documents*"},
    output="Tokenizer",
    version=4,
    metrics={
        "vocab_size": "number of ids",
        "characters_per_token": "characters per token of the documents",
        "bytes_per_token": "bytes per token of the documents",
        "tokens_per_word": "tokens per word of the documents",
        "fertility_*": "tokens per word of one language",
        "bytes_per_token_*": "bytes per token of one language",
    },
)
def train_tokenizer(params: TokenizerTrainParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Train a SentencePiece tokenizer and export it for AutoTokenizer."""
    from stages.data.documents import Documents, read_stats
    from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
    from stages.data.tokenizers.tokenizer_report import report_tokenizer
    from stages.data.tokenizers.tokenizer_sampling import sample_lines
    from stages.data.tokenizers.tokenizer_training import export_tokenizer, train_sentencepiece

    folders = inputs.paths("documents")
    sources = [Documents(folder).require_nonempty() for folder in folders]
    total = sum(read_stats(folder)["kept"]["characters"] for folder in folders)
    ctx.progress(0, 1, "steps")
    rates = _language_rates(params, folders)
    lines = sample_lines(chain(*sources), params.sample_characters, total, rates)
    model = train_sentencepiece(lines, params.vocab_size, params.tokenizer_config())
    export_tokenizer(model, out, params.model_max_length, params.tokenizer_config())
    counts = _evaluate(params, inputs, out, ctx, AGREEMENT_CHARACTERS / max(1, total))
    report_tokenizer(Tokenizer(out), counts, sources, ctx)


def _language_rates(params: TokenizerTrainParams, folders: Sequence[Path]) -> dict[str, float]:
    """Return the sampling rate of each language; empty if all are equal."""
    from stages.data.tokenizers.tokenizer_sampling import language_rates, language_sizes

    if params.language_alpha == 1:
        return {}
    sizes = sum(map(language_sizes, folders), Counter[str]())
    return language_rates(sizes, params.sample_characters, params.language_alpha)


def _evaluate(
    params: TokenizerTrainParams, inputs: Inputs, out: Path, ctx: Context, agreement_share: float
) -> dict[str, TokenCounts]:
    """Check that every document survives encoding and decoding; return counts by language."""
    from stages.data.tokenizers.tokenizer_evaluation import check_shard, check_tasks, merge_counts
    from stages.distributed.shard_tasks import run_shards

    tasks = [
        task
        for folder in inputs.paths("documents")
        for task in check_tasks(folder, out, agreement_share)
    ]
    done = 0

    def on_commit(shard: int) -> None:
        nonlocal done
        done += 1
        ctx.progress(done + 1, len(tasks) + 1, "steps")

    folder = ctx.scratch / "checked"
    commits = run_shards(
        check_shard, tasks, folder, workers=params.workers, ctx=ctx, on_commit=on_commit
    )
    return merge_counts(commits)


class TokenPackParams(Params):
    """Parameters of `tokenize.pack`."""

    renamed: ClassVar[dict[str, str]] = {"eval_share": "eval_fraction"}

    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Fraction of documents that is held out, selected by the hash of their ids. Default: 0.02."""
    seed: int = 0
    """Random seed of the order of documents. Default: the seed of the pipeline."""
    shard_tokens: PositiveInt = 1 << 26
    """Minimum size of a file, tokens; the last one may be smaller. Default: 2**26."""

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """Estimate tokens, disk and time, if the upstream stage limits the number of characters."""
        characters = getattr(upstream.get("documents"), "max_characters", None)
        if not characters:
            return {}
        tokens = characters / CHARACTERS_PER_TOKEN
        return {"tokens": tokens, "disk_bytes": 2 * tokens, "seconds": 1 + characters / 3e6}


@stage(
    "tokenize.pack",
    inputs={"documents": "Documents", "tokenizer": "Tokenizer|Model"},
    output="Tokens",
    version=3,
    metrics={
        "train_tokens": "tokens of the training split",
        "train_documents": "documents of the training split",
        "eval_tokens": "held-out tokens",
        "eval_documents": "held-out documents",
    },
)
def pack_tokens(params: TokenPackParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Encode documents into a shuffled, memory-mapped token store with held-out documents."""
    from stages.data.token_packing import ShuffledLayout
    from stages.data.token_report import report_tokens
    from stages.data.token_store import write_index, write_shard
    from stages.data.tokenizers.huggingface_tokenizer import open_tokenizer

    commits = _encode(params, inputs, ctx)
    tokenizer = open_tokenizer(inputs.path("tokenizer"))
    layout = ShuffledLayout(commits, len(tokenizer), params.eval_fraction)
    if not len(layout.order["train"]):
        raise InputError(
            "no document remains for training",
            where="eval_fraction",
            remedy="lower eval_fraction, or read more documents",
        )
    for leftover in out.iterdir():
        leftover.unlink()
    splits: dict[str, list[TokenShard]] = {}
    for split in ("train", "eval"):
        splits[split] = []
        for number, (ids, ends) in enumerate(layout.shards(split, params.shard_tokens)):
            splits[split].append(write_shard(out, f"{split}-{number:05d}", ids, ends))
            ctx.check_cancelled()
    write_index(
        out,
        vocab_size=len(tokenizer),
        eos_id=tokenizer.eos_id,
        splits=splits,
        tokenizer=tokenizer.digest,
    )
    report_tokens(layout, ctx)


def _encode(params: TokenPackParams, inputs: Inputs, ctx: Context) -> list[Path]:
    """Encode all documents; return the commit files."""
    from stages.data.token_packing import count_tokens, encode_shard, encoding_tasks
    from stages.distributed.shard_tasks import run_shards

    tasks = encoding_tasks(inputs.path("documents"), inputs.path("tokenizer"), params.seed)
    folder = ctx.scratch / "encodings"
    started, tokens, done = time.monotonic(), 0, 0

    def on_commit(shard: int) -> None:
        nonlocal tokens, done
        tokens += count_tokens(folder / f"{shard:06d}")
        done += 1
        rate = tokens / max(1e-3, time.monotonic() - started)
        ctx.progress(done, len(tasks), "shards", tokens_per_second=rate)

    return run_shards(
        encode_shard, tasks, folder, workers=params.workers, ctx=ctx, on_commit=on_commit
    )
