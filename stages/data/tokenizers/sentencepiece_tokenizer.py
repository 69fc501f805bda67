"""The tokenizer of models trained here: SentencePiece BPE or unigram with byte fallback.

The ids have a fixed layout:

    0 <pad>  1 <unk>  2 <s>  3 </s>  4 <|system|>  5 <|user|>  6 <|assistant|>
    7..15 <|reserved_0|>..<|reserved_8|>, or `additional_special_tokens`
    16..271 the bytes   272.. the pieces, runs of whitespace first

Text is never encoded to a control id; use the constants below. SentencePiece writes U+2581 for a
space, so a U+2581 of the text itself is encoded as its three bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import sentencepiece
import xxhash

from pipeline.atomic_io import read_json
from pipeline.errors import CorruptArtifact, InputError
from stages.data import kinds
from stages.data.formats.surrogates import replace_surrogates

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
CONTROL_MARK = "\ufdd0"
"""First character of the names of control tokens in `tokenizer.json`, so that no text spells one: a
noncharacter of Unicode, which no text that is meant for others contains."""
CHUNK_PATTERN_KEY = "chunks"
"""Key of `tokenizer_config.json`: the pattern that splits text into chunks before encoding."""
SPACE_AS_BYTES_KEY = "u2581_as_bytes"
"""Key of `tokenizer_config.json`: true where a U+2581 of the text is its bytes; in tokenizers of
earlier versions it is a space."""
_SPACE_IDS = [FIRST_BYTE + byte for byte in SPACE.encode()]
_AT_SPACE = re.compile(f"({SPACE})")
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
                remedy="give a folder that has tokenizer.json, or a Tokenizer artifact",
            )
        self._model = model.read_bytes()
        self._pieces = _processor(model)
        config: dict[str, Any] = read_json(self.path / "tokenizer_config.json", {})
        self._chunk_pattern = (
            re.compile(config[CHUNK_PATTERN_KEY]) if CHUNK_PATTERN_KEY in config else None
        )
        self._space_as_bytes = bool(config.get(SPACE_AS_BYTES_KEY))

    def __len__(self) -> int:
        return int(self._pieces.vocab_size())

    @property
    def vocab_size(self) -> int:
        """Number of ids, control ids and bytes included."""
        return len(self)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, never a control id. Lone surrogates are encoded as U+FFFD."""
        if self._chunk_pattern or SPACE in text:
            return self.encode_batch([text])[0]
        ids: list[int] = self._pieces.encode(replace_surrogates(text))  # starts no thread
        return ids

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Return the ids of each text, encoded on `threads` threads."""
        formed = [replace_surrogates(text) for text in texts]
        chunks = [self._chunks(text) for text in formed]
        ids = iter(self._pieces.encode(list(chain(*chunks)), num_threads=threads))
        joined = []
        for text, each in zip(formed, chunks, strict=True):
            parts = list(islice(ids, len(each)))
            if self._space_as_bytes and SPACE in text:
                marked = zip(each, parts, strict=True)
                parts = [_SPACE_IDS if chunk == SPACE else part for chunk, part in marked]
            joined.append(list(chain(*parts)))
        return joined

    def encode_with_places(self, text: str) -> tuple[list[int], list[int], list[int]]:
        """Return the ids of a text, and the first and the last place (exclusive) of the characters
        that each stands for; the bytes of one character have the same places."""
        ids: list[int] = []
        starts: list[int] = []
        ends: list[int] = []
        at = 0
        for chunk in self._chunks(replace_surrogates(text)):
            if self._space_as_bytes and chunk == SPACE:
                found = [(i, 0, 1) for i in _SPACE_IDS]
            else:
                found = _pieces_with_places(self._pieces, chunk)
            ids += [i for i, _, _ in found]
            starts += [at + start for _, start, _ in found]
            ends += [at + end for _, _, end in found]
            at += len(chunk)
        return ids, starts, ends

    def _chunks(self, text: str) -> list[str]:
        """Return the parts of a text that are encoded separately."""
        if self._chunk_pattern:
            text = text if self._space_as_bytes else text.replace(" ", SPACE)
            chunks = self._chunk_pattern.findall(text)
        else:
            chunks = [text]
        if not self._space_as_bytes or SPACE not in text:
            return chunks
        return [part for chunk in chunks for part in _AT_SPACE.split(chunk) if part]

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
        space = SPACE_AS_BYTES_KEY if self._space_as_bytes else ""
        return xxhash.xxh3_128_hexdigest(self._model + pattern.encode() + space.encode())

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
        kept = ("path", "_model", "_chunk_pattern", "_space_as_bytes")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=self._model)


def _pieces_with_places(
    pieces: sentencepiece.SentencePieceProcessor, text: str
) -> list[tuple[int, int, int]]:
    """Return ids with their first and last place (exclusive) in characters of a text.

    The library counts bytes, and gives the bytes of a character no place, except for the last.
    """
    characters = [i for i, character in enumerate(text) for _ in character.encode()]
    characters.append(len(text))
    found: list[tuple[int, int, int]] = []
    end = len(text)
    for piece in reversed(pieces.encode(text, return_type="proto").pieces):
        if piece.begin < piece.end or not found:
            end = characters[piece.end]
        found.append((piece.id, characters[piece.begin], end))
    return found[::-1]


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
