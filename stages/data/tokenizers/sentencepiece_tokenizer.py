"""The tokenizer of models trained here: SentencePiece BPE or unigram with byte fallback.

The ids have a fixed layout:

    0 <pad>  1 <unk>  2 <s>  3 </s>  4 <|system|>  5 <|user|>  6 <|assistant|>
    7..15 <|reserved_0|>..<|reserved_8|>, or `additional_special_tokens`
    16..271 the bytes   272.. the pieces, runs of whitespace first

Text is never encoded to a control id; use the constants below.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import sentencepiece
import xxhash

from pipeline.atomic_io import read_json
from pipeline.errors import CorruptArtifact, InputError
from stages.data import kinds

KIND = kinds.TOKENIZER.name
PAD, UNK, BOS, EOS, SYSTEM, USER, ASSISTANT = range(7)
RESERVED = 9
CONTROL_TOKENS = (
    *("<pad>", "<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"),
    *(f"<|reserved_{k}|>" for k in range(RESERVED)),
)
FIRST_BYTE = len(CONTROL_TOKENS)
FIRST_PIECE = FIRST_BYTE + 256
SPACE = "\u2581"
"""The character that SentencePiece writes for a space."""
CHUNK_PATTERN_KEY = "chunks"
"""Key of `tokenizer_config.json`: the pattern that splits text into chunks before encoding."""
ROLE_IDS = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")


class Tokenizer:
    """SentencePiece tokenizer of a Tokenizer or Model folder.

    Raises:
        InputError: the folder has none, or one with other control ids.
    """

    eos_id, bos_id, pad_id, padding_id, document_start_id = EOS, BOS, PAD, PAD, EOS
    """A document starts after the end token of the one before; `padding_id` fills batches."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        model = self.path / "tokenizer.model"
        if not model.exists() and not (self.path / "tokenizer.json").exists():
            raise InputError(
                "the folder holds neither tokenizer.model nor tokenizer.json",
                where=str(model),
                remedy="name a Tokenizer artifact",
            )
        if not is_headwater_tokenizer(self.path):
            raise InputError(
                "the tokenizer was not made by `tokenize.train`: it lacks <|user|> and "
                "<|assistant|> at their ids",
                where=str(self.path),
                remedy="use models whose tokenizer `tokenize.train` made for sft, reward and ppo",
            )
        self._model = model.read_bytes()
        self._pieces = _processor(model)
        config: dict[str, Any] = read_json(self.path / "tokenizer_config.json", {})
        self._chunk_pattern = (
            re.compile(config[CHUNK_PATTERN_KEY]) if CHUNK_PATTERN_KEY in config else None
        )

    def __len__(self) -> int:
        return int(self._pieces.vocab_size())

    @property
    def vocab_size(self) -> int:
        """Number of ids, control ids and bytes included."""
        return len(self)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, never a control id. Lone surrogates are encoded as U+FFFD."""
        if self._chunk_pattern:
            return self.encode_batch([text])[0]
        ids: list[int] = self._pieces.encode(replace_surrogates(text))
        return ids

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Return the ids of each text, encoded on `threads` threads."""
        formed = [replace_surrogates(text) for text in texts]
        if self._chunk_pattern:
            return self._encode_chunks(formed, self._chunk_pattern, threads)
        ids: list[list[int]] = self._pieces.encode(formed, num_threads=threads)
        return ids

    def _encode_chunks(
        self, texts: Sequence[str], pattern: re.Pattern[str], threads: int
    ) -> list[list[int]]:
        chunks = [pattern.findall(text.replace(" ", SPACE)) for text in texts]
        ids = iter(self._pieces.encode(list(chain(*chunks)), num_threads=threads))
        return [list(chain.from_iterable(next(ids) for _ in each)) for each in chunks]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; control ids are skipped, invalid UTF-8 becomes U+FFFD."""
        text: str = self._pieces.decode([int(i) for i in ids if int(i) >= FIRST_BYTE])
        return text

    def decode_batch(self, encoded: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each sequence; control ids are not allowed."""
        texts: list[str] = self._pieces.decode([list(ids) for ids in encoded]) if encoded else []
        return texts

    def piece(self, token: int) -> str:
        """Return the piece of an id, as SentencePiece writes it."""
        piece: str = self._pieces.id_to_piece(int(token))
        return piece

    def special_token_id(self, token: str) -> int | None:
        """Return the id of a control token; None if the tokenizer has no such control token."""
        controls = self.pieces[:FIRST_BYTE]
        return controls.index(token) if token in controls else None

    def document(self, text: str) -> list[int]:
        """Return the ids of a text and the end token."""
        return [*self.encode(text), EOS]

    @property
    def digest(self) -> str:
        """Hash of everything that determines the ids of a text."""
        pattern = self._chunk_pattern.pattern if self._chunk_pattern else ""
        return xxhash.xxh3_128_hexdigest(self._model + pattern.encode())

    def require_equal(self, other: Tokenizer) -> None:
        """Check that another tokenizer encodes every text to the same ids.

        Raises:
            InputError: the tokenizers differ.
        """
        if self.digest != other.digest:
            raise InputError(
                f"the tokenizers differ: {self.digest[:12]} of {len(self)} ids in {self.path}, "
                f"{other.digest[:12]} of {len(other)} ids in {other.path}",
                where=str(other.path),
                remedy="use models that were trained with the same tokenizer",
            )

    @cached_property
    def pieces(self) -> list[str]:
        """All pieces, by id."""
        return [self.piece(i) for i in range(len(self))]

    @cached_property
    def byte_counts(self) -> list[int]:
        """Number of bytes of text that each id stands for; 0 for control ids."""
        counts = [len(piece.replace(SPACE, " ").encode()) for piece in self.pieces]
        return [0] * FIRST_BYTE + [1] * 256 + counts[FIRST_PIECE:]

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_model": self._model, "_chunk_pattern": self._chunk_pattern}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=self._model)


def is_headwater_tokenizer(folder: Path) -> bool:
    """Return whether a folder has a SentencePiece model with the control ids of this module.

    Raises:
        CorruptArtifact: the model cannot be read.
    """
    model = folder / "tokenizer.model"
    if not model.exists():
        return False
    pieces, expected = _processor(model), CONTROL_TOKENS[: ASSISTANT + 1]
    count = min(len(expected), pieces.vocab_size())
    return tuple(pieces.id_to_piece(i) for i in range(count)) == expected


def _processor(model: Path) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model.read_bytes())
    except RuntimeError as error:
        raise CorruptArtifact(f"unreadable tokenizer: {error}", where=str(model)) from error


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which cannot be encoded as UTF-8, by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
