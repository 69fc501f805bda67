"""Trains a SentencePiece tokenizer and exports it so that `transformers.AutoTokenizer` gives the
same ids.

SentencePiece runs with byte fallback, without normalization or dummy prefix, and keeps whitespace.
One thread and a fixed sample: the same documents give the same bytes.

The model is modified in two ways. Runs of whitespace are user-defined symbols during training, and
become the pieces with the best scores, so that both libraries merge them alike. Unigram models add
scores, in float32 in SentencePiece and float64 in `tokenizers`: scores are rounded to 1/64, and
text is encoded in chunks that are short enough for exact sums.

In `tokenizer.json` the name of a control token begins with `CONTROL_MARK`, so that no text spells
one, while the chat template does. It has pieces with spaces where SentencePiece has U+2581, so that
a U+2581 of the text is no piece there and falls back to its bytes.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from pipeline.errors import Failure, InputError
from stages.data.formats.surrogates import replace_surrogates
from stages.data.hashing import hash64
from stages.data.tokenizers.sentencepiece_tokenizer import (
    CHUNK_PATTERN_KEY,
    CONTROL_MARK,
    CONTROL_TOKENS,
    FIRST_BYTE,
    FIRST_PIECE,
    RESERVED,
    SPACE,
    SPACE_AS_BYTES_KEY,
    UNK,
    Tokenizer,
)
from stages.data.tokenizers.template_files import adapt_template, named_template

MAX_LINE = 2_000  # characters per training line; longer texts are split at line ends
MAX_CHUNK = 2_048  # characters of a word, or of its whitespace, per chunk of a unigram model
_SCORES_PER_NAT = (
    64  # unigram scores are multiples of 1/64 nat, so that the sum of a chunk fits 24 bits
)
_EXCLUDED_SCORE = (
    -1e9
)  # score of pieces that text must not use: worse than every path of real pieces
_RESERVED = re.compile("[\u2581\u2585]")  # a space, and an unknown character in training
_MAX_VOCAB_SIZE = re.compile(r"value <= (\d+)")

ModelType = Literal["bpe", "unigram"]


@dataclass(frozen=True)
class TokenizerConfig:
    """Options of training and export."""

    model_type: ModelType = "bpe"
    split_digits: bool = True
    whitespace_runs: int = 0
    """Longest run of spaces, or of tabs, that is one piece; 0 leaves runs to the training."""
    additional_special_tokens: tuple[str, ...] = ()
    """Names of the first reserved control tokens, such as `<name>`."""
    character_coverage: float = 0.9995

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The control tokens, by id."""
        first = len(CONTROL_TOKENS) - RESERVED
        return (
            *CONTROL_TOKENS[:first],
            *self.additional_special_tokens,
            *CONTROL_TOKENS[first + len(self.additional_special_tokens) :],
        )

    @property
    def marked_control_tokens(self) -> tuple[str, ...]:
        """Names of the control tokens in `tokenizer.json`, by id."""
        return tuple(CONTROL_MARK + token for token in self.control_tokens)

    @property
    def runs(self) -> list[str]:
        """Runs of whitespace that become pieces, best score first; a single space is learned."""
        longest = range(self.whitespace_runs, 0, -1)
        return [SPACE * k for k in longest if k > 1] + ["\t" * k for k in longest]

    @property
    def chunks(self) -> str | None:
        """Pattern of the chunks that a unigram model encodes separately, None for BPE; learned
        pieces do not cross chunks, except where a chunk has its maximum length."""
        if self.model_type == "bpe":
            return None
        if not self.whitespace_runs:
            return f" {{0,{MAX_CHUNK}}}[^ ]{{1,{MAX_CHUNK}}}| {{1,{MAX_CHUNK}}}"
        k = self.whitespace_runs
        return f" {{2,{k}}}|\t{{1,{k}}}| ?[^ \t]{{1,{MAX_CHUNK}}}| "


def split_lines(text: str) -> Iterator[str]:
    """Yield pieces of at most `MAX_LINE` characters, split at line ends where possible, without the
    characters that SentencePiece reserves."""
    for part in _RESERVED.split(text):
        start = 0
        while start < len(part):
            stop = min(len(part), start + MAX_LINE)
            if stop < len(part):
                stop = part.rfind("\n", start, stop) + 1 or stop
                stop = stop if stop > start else start + MAX_LINE
            yield replace_surrogates(part[start:stop].replace("\0", ""))
            start = stop


def train_sentencepiece(
    lines: Iterable[str], vocab_size: int, config: TokenizerConfig | None = None
) -> bytes:
    """Train a SentencePiece model with exactly `vocab_size` ids and return its bytes.

    Raises:
        InputError: the text is too small for this vocabulary; the message states the largest one.
    """
    config = config or TokenizerConfig()
    controls = config.control_tokens
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=config.model_type,
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=config.split_digits,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            character_coverage=config.character_coverage,
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
            **_extras(config),
        )
    except RuntimeError as error:
        raise _training_error(error, vocab_size) from error
    if config.runs or config.model_type == "unigram":
        return _rearrange(model.getvalue(), config)
    return model.getvalue()


def _extras(config: TokenizerConfig) -> dict[str, Any]:
    """Return options that the model file would record even if they were empty.

    A unigram model must have the characters that spell the names of control tokens and bytes: see
    `_fast_unigram`.
    """
    extras: dict[str, Any] = {}
    if config.runs:
        extras["user_defined_symbols"] = config.runs
    if config.model_type == "unigram":
        spelling = set("".join(config.control_tokens)) | set("<0x123456789ABCDEF>")
        extras["required_chars"] = "".join(sorted(spelling))
    return extras


def _rearrange(model: bytes, config: TokenizerConfig) -> bytes:
    """Move the whitespace runs behind the bytes, as the best pieces, and round unigram scores."""
    from sentencepiece import sentencepiece_model_pb2 as schema

    proto = schema.ModelProto.FromString(model)
    pieces, kinds = list(proto.pieces), schema.ModelProto.SentencePiece
    first, after = len(config.control_tokens), len(config.control_tokens) + len(config.runs)
    runs, learned = pieces[first:after], pieces[after + 256 :]
    for better, run in enumerate(reversed(runs), start=1):
        run.type = kinds.NORMAL
        run.score = -1.0 if config.model_type == "unigram" else better
    if config.model_type == "unigram":
        for piece in learned:
            piece.score = round(piece.score * _SCORES_PER_NAT) / _SCORES_PER_NAT
    ordered = [*pieces[:first], *pieces[after : after + 256], *runs, *learned]
    copies = [kinds.FromString(piece.SerializeToString()) for piece in ordered]
    del proto.pieces[:]
    proto.pieces.extend(copies)
    proto.trainer_spec.ClearField("user_defined_symbols")
    return bytes(proto.SerializeToString(deterministic=True))


def _training_error(error: RuntimeError, vocab_size: int) -> Exception:
    largest = _MAX_VOCAB_SIZE.search(str(error))
    if largest:
        return InputError(
            f"the text is too small for a vocabulary of {vocab_size}: at most {largest[1]}",
            where="vocab_size",
            remedy=f"set vocab_size to {largest[1]} or less, or read more text",
        )
    if "vocab_size" in str(error) or "required_chars" in str(error):
        return InputError(
            f"a vocabulary of {vocab_size} is too small for the characters of the text",
            where="vocab_size",
            remedy="raise vocab_size",
        )
    if "sentences_.empty()" in str(error):
        return InputError(
            "the sample contains no text to learn from", where="documents", remedy="read more text"
        )
    return Failure(f"tokenizer training failed: {error}")


def export_tokenizer(
    model: bytes,
    out: Path,
    model_max_length: int | None = None,
    config: TokenizerConfig | None = None,
) -> None:
    """Write `tokenizer.model`, `tokenizer.json` and `tokenizer_config.json`."""
    from pipeline.atomic_io import write_atomic

    config = config or TokenizerConfig()
    write_atomic(out / "tokenizer.model", model)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    write_atomic(out / "tokenizer.json", _fast_tokenizer(pieces, config).to_str(pretty=False))
    options = _tokenizer_config_json(model_max_length, config)
    text = json.dumps(options, indent=1, sort_keys=True)  # ASCII, which shows the control mark
    write_atomic(out / "tokenizer_config.json", text)


def _tokenizer_config_json(model_max_length: int | None, config: TokenizerConfig) -> dict[str, Any]:
    controls = config.marked_control_tokens
    return {
        **({CHUNK_PATTERN_KEY: config.chunks} if config.chunks else {}),
        SPACE_AS_BYTES_KEY: True,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": controls[0],
        "unk_token": controls[1],
        "bos_token": controls[2],
        "eos_token": controls[3],
        "additional_special_tokens": list(controls[4:]),
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "model_max_length": model_max_length or 1_000_000,
        "chat_template": adapt_template(
            named_template("headwater"), lambda _, token: CONTROL_MARK + token
        ),
    }


def _fast_tokenizer(pieces: sentencepiece.SentencePieceProcessor, config: TokenizerConfig) -> Any:
    """Build the same tokenizer with the `tokenizers` library."""
    from tokenizers import AddedToken, Regex, decoders, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer

    names = [*config.marked_control_tokens]
    names += [_with_spaces(pieces.id_to_piece(i)) for i in range(FIRST_BYTE, pieces.vocab_size())]
    build = _fast_unigram if config.chunks else _fast_bpe
    fast = FastTokenizer(build(pieces, names))
    if config.chunks:
        fast.pre_tokenizer = pre_tokenizers.Split(Regex(config.chunks), "isolated")
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    fast.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in names[:FIRST_BYTE]]
    )
    return fast


def _fast_bpe(pieces: sentencepiece.SentencePieceProcessor, names: Sequence[str]) -> Any:
    from tokenizers.models import BPE

    return BPE(
        {name: i for i, name in enumerate(names)},
        [(_with_spaces(left), _with_spaces(right)) for left, right in bpe_merges(pieces)],
        unk_token=names[UNK],
        byte_fallback=True,
        fuse_unk=True,
    )


def _fast_unigram(pieces: sentencepiece.SentencePieceProcessor, names: Sequence[str]) -> Any:
    """Build the unigram model.

    `tokenizers` also finds the names of bytes in text, so they get a score that loses to spelling
    them, which is always possible. It scores an unknown character with the worst score, on every
    path alike.
    """
    from tokenizers.models import Unigram

    scores = [_EXCLUDED_SCORE] * FIRST_PIECE
    scores += [pieces.get_score(i) for i in range(FIRST_PIECE, pieces.vocab_size())]
    vocab = list(zip(names, scores, strict=True))
    return Unigram(vocab, UNK, byte_fallback=True)


def _with_spaces(piece: str) -> str:
    return piece.replace(SPACE, " ")


def bpe_merges(pieces: sentencepiece.SentencePieceProcessor) -> list[tuple[str, str]]:
    """Return the merge list with which rank-ordered BPE gives the results of SentencePiece.

    SentencePiece merges the neighbours that form the piece with the best score, leftmost first, for
    any pair of pieces. Therefore every split of a piece into two pieces is a merge, in the order of
    the scores. If two splits of one piece compete for a symbol between them (`ab|a|ba` for `aba`),
    the left one must win: the split whose right part is also a prefix of the piece comes first.
    """
    known = [pieces.id_to_piece(i) for i in range(FIRST_PIECE, pieces.vocab_size())]
    vocabulary = set(known)
    ordered: list[tuple[str, str]] = []
    for piece in known:  # ids are in the order of the scores
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        pairs = [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
        ordered += sorted(pairs, key=lambda pair: (not piece.startswith(pair[1]), -len(pair[0])))
    return ordered


def check_same_ids(tokenizer: Tokenizer, out: Path, texts: Iterable[str]) -> None:
    """Check on these texts that the exported `tokenizer.json` gives the ids of `tokenizer.model`.

    Texts with `CONTROL_MARK` are not compared.

    Raises:
        Failure: it does not; the message names the first text that differs.
    """
    from tokenizers import Tokenizer as FastTokenizer

    fast = FastTokenizer.from_file(str(out / "tokenizer.json"))
    for text in texts:
        if CONTROL_MARK in text:
            continue
        expected, found = tokenizer.encode(text), fast.encode(text, add_special_tokens=False).ids
        if expected != found:
            at = next(
                (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), 0
            )
            raise Failure(
                f"tokenizer.json and tokenizer.model differ at token {at} of a text "
                f"({hash64(text):016x})",
                remedy="report a bug: the two libraries disagree",
            )
