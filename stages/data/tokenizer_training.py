"""Trains the tokenizer and exports it so that `transformers.AutoTokenizer` gives the same ids.

SentencePiece BPE: byte fallback, digits split, no normalisation, no dummy prefix, white space
kept as it is. One thread and a fixed sample: the same documents give the same bytes.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from pipeline.errors import Failure, InputError
from stages.data.chat import TEMPLATE
from stages.data.documents import Document
from stages.data.hashing import fraction, hash64
from stages.data.tokenizer import CONTROLS, FIRST_BYTE, SPACE, UNK, Tokenizer, well_formed

LINE = 2_000  # characters a training line at most: longer ones are cut where a line ends
_TOO_LARGE = re.compile(r"value <= (\d+)")


def sample_lines(documents: Iterable[Document], characters: int, total: int) -> Iterator[str]:
    """Lines of a sample of about `characters` of the documents' `total` characters.

    A document is taken or left by the hash of its id, so that the sample is the same in any
    order and spread over all sources.
    """
    share = characters / max(1, total)
    for document in documents:
        if share >= 1 or fraction(f"tokenizer {document.id}") < share:
            yield from cut_lines(document.text)


def cut_lines(text: str) -> Iterator[str]:
    """The text in pieces of at most `LINE` characters, cut after a line's end if there is one."""
    start = 0
    while start < len(text):
        stop = min(len(text), start + LINE)
        if stop < len(text):
            stop = text.rfind("\n", start, stop) + 1 or stop
            stop = stop if stop > start else start + LINE
        yield well_formed(text[start:stop].replace("\0", ""))
        start = stop


def train(lines: Iterable[str], vocab_size: int) -> bytes:
    """The SentencePiece model of a vocabulary of exactly `vocab_size` ids.

    Raises:
        InputError: the text supports no vocabulary so large; the message names the largest.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            character_coverage=0.9995,
            max_sentence_length=8 * LINE,
            input_sentence_size=0,
            num_threads=1,
            minloglevel=2,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=CONTROLS[0],
            unk_piece=CONTROLS[1],
            bos_piece=CONTROLS[2],
            eos_piece=CONTROLS[3],
            unk_surface="\ufffd",
            control_symbols=list(CONTROLS[4:]),
        )
    except RuntimeError as error:
        raise _training_error(error, vocab_size) from error
    return model.getvalue()


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


def export(model: bytes, out: Path, max_length: int | None = None) -> None:
    """Write `tokenizer.model`, `tokenizer.json` and `tokenizer_config.json`."""
    from pipeline.disk import write_atomic

    write_atomic(out / "tokenizer.model", model)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    write_atomic(out / "tokenizer.json", _fast_tokenizer(pieces).to_str(pretty=False))
    config = json.dumps(_config(max_length), indent=1, sort_keys=True, ensure_ascii=False)
    write_atomic(out / "tokenizer_config.json", config)


def _config(max_length: int | None) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": CONTROLS[0],
        "unk_token": CONTROLS[1],
        "bos_token": CONTROLS[2],
        "eos_token": CONTROLS[3],
        "additional_special_tokens": list(CONTROLS[4:]),
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # text that spells a control token is text
        "padding_side": "left",
        "model_max_length": max_length or 1_000_000,
        "chat_template": TEMPLATE,
    }


def _fast_tokenizer(pieces: sentencepiece.SentencePieceProcessor) -> Any:
    """The same function in the `tokenizers` library."""
    from tokenizers import AddedToken, decoders, normalizers
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers.models import BPE

    vocab = {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())}
    bpe = BPE(
        vocab,
        merges(pieces),
        unk_token=CONTROLS[UNK],
        byte_fallback=True,
        fuse_unk=True,
    )
    fast = FastTokenizer(bpe)
    fast.normalizer = normalizers.Replace(" ", SPACE)
    fast.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    fast.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in CONTROLS]
    )
    fast.encode_special_tokens = True
    return fast


def merges(pieces: sentencepiece.SentencePieceProcessor) -> list[tuple[str, str]]:
    """The merge list that makes rank-ordered BPE do what SentencePiece does.

    SentencePiece joins the neighbours that make the best-scored piece, leftmost first, whichever
    two pieces they are. So every way to split a piece into two pieces is a merge, in the order of
    the scores. Where two splits of one piece compete for a symbol between them (`ab|a|ba` for
    `aba`), the left one must win: the split whose right part both begins and ends the piece
    comes first.
    """
    first_piece = FIRST_BYTE + 256
    known = [pieces.id_to_piece(i) for i in range(first_piece, pieces.vocab_size())]
    vocabulary = set(known)
    ordered: list[tuple[str, str]] = []
    for piece in known:  # ids are in the order of the scores
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        made = [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
        ordered += sorted(made, key=lambda pair: (not _takes_left(piece, pair[1]), -len(pair[0])))
    return ordered


def _takes_left(piece: str, right: str) -> bool:
    return piece.startswith(right)


def agreement(tokenizer: Tokenizer, out: Path, texts: Iterable[str]) -> None:
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
