"""Trains the tokenizer and exports it so that `transformers.AutoTokenizer` gives the same ids.

SentencePiece: byte fallback, no normalisation, no dummy prefix, white space kept as it is. One
thread and a fixed sample: the same documents give the same bytes.

Two things are not as SentencePiece leaves them. Runs of white space are learnt around as its
user-defined symbols, and then made the best-scored pieces of all, which joins them alike in both
libraries. A unigram model adds scores, in float32 here and in float64 there: so its scores are
rounded to 1/64, and text is encoded in chunks too short for any sum to be inexact.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from pipeline.errors import Failure, InputError
from stages.data.hashing import hash64
from stages.data.tokenizers.chat_template import CHAT_TEMPLATE
from stages.data.tokenizers.sentencepiece_tokenizer import (
    CHUNK_PATTERN_KEY,
    CONTROL_TOKENS,
    FIRST_BYTE,
    RESERVED,
    SPACE,
    UNK,
    Tokenizer,
    replace_surrogates,
)

MAX_LINE = 2_000  # characters a training line at most: longer ones are cut where a line ends
MAX_CHUNK = 2_048  # characters of a word, or of its white space, that a unigram model sees at once
_QUANTUM = 64  # parts of a nat that unigram scores are rounded to: a chunk's sum fits 24 bits
_NEVER = -1e9  # the score of what text must not yield: no path of real pieces is as bad
_FIRST_PIECE = FIRST_BYTE + 256
_TOO_LARGE = re.compile(r"value <= (\d+)")

ModelType = Literal["bpe", "unigram"]


@dataclass(frozen=True)
class TokenizerConfig:
    """What is trained."""

    model: ModelType = "bpe"
    split_digits: bool = True
    whitespace_runs: int = 0
    """The longest run of spaces, or of tabs, that is one piece; 0 leaves it to the training."""
    reserved: tuple[str, ...] = ()
    """Names of the first reserved control tokens, each like `<name>`."""
    character_coverage: float = 0.9995

    @property
    def controls(self) -> tuple[str, ...]:
        """The control tokens by id."""
        first = len(CONTROL_TOKENS) - RESERVED
        return (
            *CONTROL_TOKENS[:first],
            *self.reserved,
            *CONTROL_TOKENS[first + len(self.reserved) :],
        )

    @property
    def runs(self) -> list[str]:
        """The runs of white space that are pieces, best first; nobody learns that of one space."""
        longest = range(self.whitespace_runs, 0, -1)
        return [SPACE * k for k in longest if k > 1] + ["\t" * k for k in longest]

    @property
    def chunks(self) -> str | None:
        """The pattern of what a unigram model encodes at once; no learnt piece crosses its cuts,
        but where a chunk is full."""
        if self.model == "bpe":
            return None
        if not self.whitespace_runs:
            return f"{SPACE}{{0,{MAX_CHUNK}}}[^{SPACE}]{{1,{MAX_CHUNK}}}|{SPACE}{{1,{MAX_CHUNK}}}"
        k = self.whitespace_runs
        runs = f"{SPACE}{{2,{k}}}|\t{{1,{k}}}"
        return f"{runs}|{SPACE}?[^{SPACE}\t]{{1,{MAX_CHUNK}}}|{SPACE}"


def split_lines(text: str) -> Iterator[str]:
    """The text in pieces of at most `LINE` characters, cut after a line's end if there is one."""
    start = 0
    while start < len(text):
        stop = min(len(text), start + MAX_LINE)
        if stop < len(text):
            stop = text.rfind("\n", start, stop) + 1 or stop
            stop = stop if stop > start else start + MAX_LINE
        yield replace_surrogates(text[start:stop].replace("\0", ""))
        start = stop


def train_sentencepiece(
    lines: Iterable[str], vocab_size: int, recipe: TokenizerConfig | None = None
) -> bytes:
    """The SentencePiece model of a vocabulary of exactly `vocab_size` ids.

    Raises:
        InputError: the text supports no vocabulary so large; the message names the largest.
    """
    recipe = recipe or TokenizerConfig()
    controls = recipe.controls
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=recipe.model,
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=recipe.split_digits,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            character_coverage=recipe.character_coverage,
            max_sentence_length=8 * MAX_LINE,
            input_sentence_size=0,
            num_threads=1,
            minloglevel=2,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=controls[0],
            unk_piece=controls[1],
            bos_piece=controls[2],
            eos_piece=controls[3],
            unk_surface="\ufffd",
            control_symbols=list(controls[4:]),
            **_extras(recipe),
        )
    except RuntimeError as error:
        raise _training_error(error, vocab_size) from error
    if recipe.runs or recipe.model == "unigram":
        return _rearranged(model.getvalue(), recipe)
    return model.getvalue()


def _extras(recipe: TokenizerConfig) -> dict[str, Any]:
    """Options that the model file would record even if they were empty.

    What spells the names of controls and bytes is required of a unigram model: see
    `_fast_unigram`.
    """
    extras: dict[str, Any] = {}
    if recipe.runs:
        extras["user_defined_symbols"] = recipe.runs
    if recipe.model == "unigram":
        spelling = set("".join(recipe.controls)) | set("<0x123456789ABCDEF>")
        extras["required_chars"] = "".join(sorted(spelling))
    return extras


def _rearranged(model: bytes, recipe: TokenizerConfig) -> bytes:
    """The same model with the runs after the bytes, as the best pieces, and with exact scores."""
    from sentencepiece import sentencepiece_model_pb2 as schema

    proto = schema.ModelProto.FromString(model)
    pieces, kinds = list(proto.pieces), schema.ModelProto.SentencePiece
    first, after = len(recipe.controls), len(recipe.controls) + len(recipe.runs)
    runs, learnt = pieces[first:after], pieces[after + 256 :]
    for better, run in enumerate(reversed(runs), start=1):
        run.type = kinds.NORMAL
        run.score = -1.0 if recipe.model == "unigram" else better
    if recipe.model == "unigram":
        for piece in learnt:
            piece.score = round(piece.score * _QUANTUM) / _QUANTUM
    ordered = [*pieces[:first], *pieces[after : after + 256], *runs, *learnt]
    copies = [kinds.FromString(piece.SerializeToString()) for piece in ordered]
    del proto.pieces[:]
    proto.pieces.extend(copies)
    proto.trainer_spec.ClearField("user_defined_symbols")
    return bytes(proto.SerializeToString(deterministic=True))


def _training_error(error: RuntimeError, vocab_size: int) -> Exception:
    largest = _TOO_LARGE.search(str(error))
    if largest:
        return InputError(
            f"a vocabulary of {vocab_size} is larger than the text supports: at most {largest[1]}",
            where="vocab_size",
            remedy=f"set vocab_size to {largest[1]} or less, or read more text",
        )
    if "vocab_size" in str(error) or "required_chars" in str(error):
        return InputError(
            f"a vocabulary of {vocab_size} is too small for the characters of the text",
            where="vocab_size",
            remedy="raise vocab_size",
        )
    return Failure(f"the tokenizer could not be trained: {error}")


def export_tokenizer(
    model: bytes, out: Path, max_length: int | None = None, recipe: TokenizerConfig | None = None
) -> None:
    """Write `tokenizer.model`, `tokenizer.json` and `tokenizer_config.json`."""
    from pipeline.atomic_io import write_atomic

    recipe = recipe or TokenizerConfig()
    write_atomic(out / "tokenizer.model", model)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    write_atomic(out / "tokenizer.json", _fast_tokenizer(pieces, recipe).to_str(pretty=False))
    config = json.dumps(_config(max_length, recipe), indent=1, sort_keys=True, ensure_ascii=False)
    write_atomic(out / "tokenizer_config.json", config)


def _config(max_length: int | None, recipe: TokenizerConfig) -> dict[str, Any]:
    controls = recipe.controls
    return {
        **({CHUNK_PATTERN_KEY: recipe.chunks} if recipe.chunks else {}),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": controls[0],
        "unk_token": controls[1],
        "bos_token": controls[2],
        "eos_token": controls[3],
        "additional_special_tokens": list(controls[4:]),
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # text that spells a control token is text
        "padding_side": "left",
        "model_max_length": max_length or 1_000_000,
        "chat_template": CHAT_TEMPLATE,
    }


def _fast_tokenizer(pieces: sentencepiece.SentencePieceProcessor, recipe: TokenizerConfig) -> Any:
    """The same function in the `tokenizers` library."""
    from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer

    fast = FastTokenizer(_fast_unigram(pieces) if recipe.chunks else _fast_bpe(pieces))
    fast.normalizer = normalizers.Replace(" ", SPACE)
    if recipe.chunks:
        fast.pre_tokenizer = pre_tokenizers.Split(Regex(recipe.chunks), "isolated")
    fast.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    fast.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in recipe.controls]
    )
    fast.encode_special_tokens = True
    return fast


def _fast_bpe(pieces: sentencepiece.SentencePieceProcessor) -> Any:
    from tokenizers.models import BPE

    return BPE(
        {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())},
        bpe_merges(pieces),
        unk_token=CONTROL_TOKENS[UNK],
        byte_fallback=True,
        fuse_unk=True,
    )


def _fast_unigram(pieces: sentencepiece.SentencePieceProcessor) -> Any:
    """`tokenizers` looks for the names of controls and bytes in the text too: at a score that
    loses to spelling them, which is always possible.

    It takes the worst score for that of an unknown character, which is in no piece: on every
    path alike.
    """
    from tokenizers.models import Unigram

    real = range(_FIRST_PIECE, pieces.vocab_size())
    vocab = [(pieces.id_to_piece(i), _NEVER) for i in range(_FIRST_PIECE)]
    vocab += [(pieces.id_to_piece(i), pieces.get_score(i)) for i in real]
    return Unigram(vocab, UNK, byte_fallback=True)


def bpe_merges(pieces: sentencepiece.SentencePieceProcessor) -> list[tuple[str, str]]:
    """The merge list that makes rank-ordered BPE do what SentencePiece does.

    SentencePiece joins the neighbours that make the best-scored piece, leftmost first, whichever
    two pieces they are. So every way to split a piece into two pieces is a merge, in the order of
    the scores. Where two splits of one piece compete for a symbol between them (`ab|a|ba` for
    `aba`), the left one must win: the split whose right part both begins and ends the piece
    comes first.
    """
    known = [pieces.id_to_piece(i) for i in range(_FIRST_PIECE, pieces.vocab_size())]
    vocabulary = set(known)
    ordered: list[tuple[str, str]] = []
    for piece in known:  # ids are in the order of the scores
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        made = [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
        ordered += sorted(made, key=lambda pair: (not _takes_left(piece, pair[1]), -len(pair[0])))
    return ordered


def _takes_left(piece: str, right: str) -> bool:
    return piece.startswith(right)


def check_same_ids(tokenizer: Tokenizer, out: Path, texts: Iterable[str]) -> None:
    """Check on these texts that the exported `tokenizer.json` gives the model's ids.

    Raises:
        Failure: it does not; the first text that differs is named.
    """
    from tokenizers import Tokenizer as FastTokenizer

    fast = FastTokenizer.from_file(str(out / "tokenizer.json"))
    fast.encode_special_tokens = True
    for text in texts:
        ours, theirs = tokenizer.encode(text), fast.encode(text, add_special_tokens=False).ids
        if ours != theirs:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
            raise Failure(
                f"tokenizer.json and tokenizer.model differ at token {at} of a text "
                f"({hash64(text):016x})",
                remedy="report this text's tokenizer: the two libraries disagree",
            )
