"""The tokenizer: SentencePiece BPE or unigram with byte fallback, in the layout that every model
expects.

    0 <pad>  1 <unk>  2 <s>  3 </s>  4 <|system|>  5 <|user|>  6 <|assistant|>
    7..15 <|reserved_0|>..<|reserved_8|>, or what the user calls them
    16..271 the bytes   272.. the pieces, runs of white space first

Text never yields a control id: whoever wants one uses the constants below.
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

KIND = "Tokenizer"
PAD, UNK, BOS, EOS, SYSTEM, USER, ASSISTANT = range(7)
RESERVED = 9
CONTROL_TOKENS = (
    *("<pad>", "<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"),
    *(f"<|reserved_{k}|>" for k in range(RESERVED)),
)
FIRST_BYTE = len(CONTROL_TOKENS)
SPACE = "\u2581"
"""How SentencePiece writes a space."""
CHUNK_PATTERN_KEY = "chunks"
"""The key of `tokenizer_config.json` with the pattern that text is cut by before it is encoded."""
ROLE_IDS = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")


class Tokenizer:
    """Encodes and decodes with the SentencePiece model of a Tokenizer or Model folder.

    Raises:
        InputError: there is none, or it is somebody else's, whose control ids are not these.
    """

    eos_id, bos_id, pad_id, padding_id, document_start_id = EOS, BOS, PAD, PAD, EOS
    """A document begins after the end of the one before; `padding_id` fills up batches."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        model = self.path / "tokenizer.model"
        if not model.exists() and not (self.path / "tokenizer.json").exists():
            raise InputError(
                "no tokenizer here", where=str(model), remedy="name a Tokenizer artifact"
            )
        if not is_headwater_tokenizer(self.path):
            raise InputError(
                "the tokenizer is of another make: it has no <|user|> and <|assistant|> where "
                "chats have them",
                where=str(self.path),
                remedy="fine-tune, reward and align models whose tokenizer `tokenize.train` made",
            )
        self._model = model.read_bytes()
        self._pieces = _processor(model)
        config: dict[str, Any] = read_json(self.path / "tokenizer_config.json", {})
        self._chunks = (
            re.compile(config[CHUNK_PATTERN_KEY]) if CHUNK_PATTERN_KEY in config else None
        )

    def __len__(self) -> int:
        return int(self._pieces.vocab_size())

    @property
    def vocab_size(self) -> int:
        """Ids of the tokenizer, control ids and bytes included."""
        return len(self)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; never a control id. A lone surrogate counts as U+FFFD."""
        if self._chunks:
            return self.encode_batch([text])[0]
        ids: list[int] = self._pieces.encode(replace_surrogates(text))
        return ids

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """The ids of each text, on as many threads as asked for."""
        formed = [replace_surrogates(text) for text in texts]
        if self._chunks:
            return self._encode_chunks(formed, self._chunks, threads)
        ids: list[list[int]] = self._pieces.encode(formed, num_threads=threads)
        return ids

    def _encode_chunks(
        self, texts: Sequence[str], pattern: re.Pattern[str], threads: int
    ) -> list[list[int]]:
        chunks = [pattern.findall(text.replace(" ", SPACE)) for text in texts]
        ids = iter(self._pieces.encode(list(chain(*chunks)), num_threads=threads))
        return [list(chain.from_iterable(next(ids) for _ in each)) for each in chunks]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; control ids are silent, broken byte runs become U+FFFD."""
        text: str = self._pieces.decode([int(i) for i in ids if int(i) >= FIRST_BYTE])
        return text

    def decode_batch(self, encoded: Sequence[Sequence[int]]) -> list[str]:
        """The text of each; without control ids, which `encode` never gives."""
        texts: list[str] = self._pieces.decode([list(ids) for ids in encoded]) if encoded else []
        return texts

    def piece(self, token: int) -> str:
        """The piece of an id, as SentencePiece writes it."""
        piece: str = self._pieces.id_to_piece(int(token))
        return piece

    def special_token_id(self, token: str) -> int | None:
        """Return the id of a control token, which text never yields; None if there is none."""
        controls = self.pieces[:FIRST_BYTE]
        return controls.index(token) if token in controls else None

    def document(self, text: str) -> list[int]:
        """The ids of a text and its end."""
        return [*self.encode(text), EOS]

    @property
    def digest(self) -> str:
        """A name of all that decides the ids of a text."""
        pattern = self._chunks.pattern if self._chunks else ""
        return xxhash.xxh3_128_hexdigest(self._model + pattern.encode())

    def require_equal(self, other: Tokenizer) -> None:
        """See that another tokenizer makes the same ids of every text.

        Raises:
            InputError: it does not.
        """
        if self.digest != other.digest:
            raise InputError(
                f"the tokenizers differ: {self.digest[:12]} of {len(self)} ids in {self.path}, "
                f"{other.digest[:12]} of {len(other)} ids in {other.path}",
                where=str(other.path),
                remedy="take models that were trained from the same one",
            )

    @cached_property
    def pieces(self) -> list[str]:
        """Every piece by id."""
        return [self.piece(i) for i in range(len(self))]

    @cached_property
    def byte_counts(self) -> list[int]:
        """How many bytes of text each id stands for; control ids stand for none."""
        counts = [len(piece.replace(SPACE, " ").encode()) for piece in self.pieces]
        first_piece = FIRST_BYTE + 256
        return [0] * FIRST_BYTE + [1] * 256 + counts[first_piece:]

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_model": self._model, "_chunks": self._chunks}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=self._model)


def is_headwater_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a SentencePiece model with the control ids of this module.

    Raises:
        CorruptArtifact: what is there cannot be read.
    """
    model = folder / "tokenizer.model"
    if not model.exists():
        return False
    pieces, marks = _processor(model), CONTROL_TOKENS[: ASSISTANT + 1]
    count = min(len(marks), pieces.vocab_size())
    return tuple(pieces.id_to_piece(i) for i in range(count)) == marks


def _processor(model: Path) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model.read_bytes())
    except RuntimeError as error:
        raise CorruptArtifact(f"unreadable tokenizer: {error}", where=str(model)) from error


def replace_surrogates(text: str) -> str:
    """The text with lone surrogates (which no encoding can write) as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
