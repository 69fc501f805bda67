"""Tokenizers of imported models: a `tokenizer.json` from the Hugging Face Hub.

Supported are byte-level BPE (GPT-2, Llama 3, Qwen) and SentencePiece in the format of `tokenizers`
(Llama 2). Decoding restores a text, or its NFC form if the tokenizer normalizes to NFC (Qwen);
tokenizers that lose more, such as case, are rejected. SentencePiece models of the hub write U+2581
for a space, so a U+2581 of the text becomes one. The tokens that start and end a document are
read from `tokenizer_config.json`, or from `config.json` as in the folder of GPT-2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash
from tokenizers import Tokenizer as FastTokenizer

from pipeline.atomic_io import disk_errors, read_json
from pipeline.errors import InputError
from stages.data.formats.surrogates import replace_surrogates
from stages.data.tokenizers.sentencepiece_tokenizer import (
    SPACE,
    Tokenizer,
    is_headwater_tokenizer,
)

BYTE_LEVEL, SENTENCEPIECE = "ByteLevel", "ByteFallback"
GENERATION = "generation_config.json"
_LOSSLESS_NORMALIZERS: tuple[dict[str, Any], ...] = (
    {"type": "NFC"},
    {"type": "ByteLevel"},
    {"type": "Prepend", "prepend": SPACE},
    {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
)
"""Normalizers that decoding reverts, and NFC."""


class HuggingFaceEncoder:
    """Encoder of texts by the `tokenizer.json` of a folder; any normalizer is accepted.

    Text never yields a control id.

    Raises:
        InputError: the file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder)
        file = self.path / "tokenizer.json"
        with disk_errors(file, to="read"):
            self._file = file.read_bytes()
        try:
            self._fast = FastTokenizer.from_str(self._file.decode())
            self._json: dict[str, Any] = json.loads(self._file)
        except Exception as error:  # the library has no exception type of its own
            raise InputError(f"cannot read the tokenizer: {error}", where=str(file)) from error
        self._fast.no_padding()
        self._fast.no_truncation()
        self._fast.encode_special_tokens = True

    def __len__(self) -> int:
        return 1 + max(self._fast.get_vocab(with_added_tokens=True).values())

    @property
    def digest(self) -> str:
        """Digest of all that determines the ids of a text."""
        return xxhash.xxh3_128_hexdigest(self._file)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; a lone surrogate counts as U+FFFD."""
        ids: list[int] = self._fast.encode(replace_surrogates(text), add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        return [self.encode(text) for text in texts]


class HuggingFaceTokenizer(HuggingFaceEncoder):
    """Tokenizer by the `tokenizer.json` of a folder, with the interface of `Tokenizer`.

    Text is never encoded to a control id. There are no ids of chat roles.

    Raises:
        InputError: the file cannot be read, is not lossless, or has no end-of-document token.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._kind = self._known_kind()
        self._check_normalizer()
        self.bos_id, self.pad_id = self._special_id("bos"), self._special_id("pad")
        self.eos_id = self._find_eos_id()

    @property
    def vocab_size(self) -> int:
        """Number of ids; the model may have more, which are never used."""
        return len(self)

    @property
    def padding_id(self) -> int:
        """Padding token id; the end-of-document token if none is defined."""
        return self.eos_id if self.pad_id is None else self.pad_id

    @cached_property
    def document_start_id(self) -> int:
        """Id that documents start after: the token that the tokenizer puts before texts, if it
        does; otherwise the end token of the document before."""
        encoded = self._fast.encode("", add_special_tokens=True).ids
        return self.bos_id if self.bos_id is not None and self.bos_id in encoded else self.eos_id

    def special_token_id(self, token: str) -> int | None:
        """Return the id of a special token; None if the tokenizer has no such special token."""
        found: int | None = self._fast.token_to_id(token)
        return found if found in self._special else None

    def document(self, text: str) -> list[int]:
        """Return the ids of a text, after the start token if there is one, and the end token."""
        start = [] if self.document_start_id == self.eos_id else [self.document_start_id]
        return [*start, *self.encode(text), self.eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; control ids are skipped, invalid UTF-8 becomes U+FFFD."""
        text: str = self._fast.decode([int(i) for i in ids], skip_special_tokens=True)
        return text

    @property
    def digest(self) -> str:
        """Hash of everything that determines the ids of a document."""
        return xxhash.xxh3_128_hexdigest(
            self._file + f"\n{self.document_start_id} {self.eos_id}".encode()
        )

    @cached_property
    def byte_counts(self) -> list[int]:
        """Number of bytes of text that each id stands for; 0 for control ids. The space that
        SentencePiece puts before a text counts."""
        counts = [0] * len(self)
        for piece, i in self._fast.get_vocab(with_added_tokens=True).items():
            counts[i] = self._bytes_of(piece)
        for added in self._json.get("added_tokens", []):
            counts[added["id"]] = 0 if added["special"] else len(added["content"].encode())
        return counts

    def _bytes_of(self, piece: str) -> int:
        if self._kind == BYTE_LEVEL:
            return len(piece)  # the vocabulary has one character per byte
        if len(piece) == 6 and piece.startswith("<0x"):
            return 1
        return len(piece.replace(SPACE, " ").encode())

    def _known_kind(self) -> str:
        kinds = {str(part.get("type")) for part in _flatten(self._json.get("decoder"), "decoders")}
        for kind in (BYTE_LEVEL, SENTENCEPIECE):
            if kind in kinds:
                return kind
        raise InputError(
            f"unsupported tokenizer: its decoder ({', '.join(sorted(kinds)) or 'none'}) does not "
            "restore texts",
            where=str(self.path / "tokenizer.json"),
            remedy="use a model with byte-level BPE, or SentencePiece with byte fallback",
        )

    def _check_normalizer(self) -> None:
        """Check that the normalizer loses nothing.

        Raises:
            InputError: it does.
        """
        for normalizer in _flatten(self._json.get("normalizer"), "normalizers"):
            if normalizer not in _LOSSLESS_NORMALIZERS:
                raise InputError(
                    f"the tokenizer is not lossless: its normalizer is {json.dumps(normalizer)}",
                    where=str(self.path / "tokenizer.json"),
                    remedy="use a model whose tokenizer has no normalizer, or NFC",
                )

    def _special_id(self, name: str) -> int | None:
        """Return the id of a special token (`bos`, `eos`, `pad`), or None if it is not defined.

        Raises:
            InputError: the token is not in the vocabulary, or is not a special token.
        """
        config: dict[str, Any] = read_json(self.path / "tokenizer_config.json", {})
        value = config.get(f"{name}_token")
        if value is None:
            found = next(iter(self._ids_from_config(name)), None)
        else:
            piece = value.get("content", value) if isinstance(value, dict) else value
            found = self._piece_id(name, piece)
        if found is not None and found not in self._special:
            raise InputError(
                f"the {name} token {self._fast.id_to_token(found)!r} is not a special token, so "
                "the text of a document may contain it",
                where=str(self.path / "tokenizer.json"),
                remedy="list it under added_tokens with special: true, or use another token",
            )
        return found

    def _piece_id(self, name: str, piece: Any) -> int:
        found: int | None = self._fast.token_to_id(piece) if isinstance(piece, str) else None
        if found is None:
            raise InputError(
                f"the {name} token {piece!r} of tokenizer_config.json is not in tokenizer.json",
                where=str(self.path),
                remedy="take both files from the same model",
            )
        return found

    @cached_property
    def _special(self) -> frozenset[int]:
        """Ids that text is never encoded to."""
        added = self._json.get("added_tokens", [])
        return frozenset(token["id"] for token in added if token["special"])

    def _find_eos_id(self) -> int:
        """Return the id that ends a document.

        Raises:
            InputError: it is not defined, or the config of the model has another one.
        """
        found, configured = self._special_id("eos"), self._ids_from_config("eos")
        if found is None:
            raise InputError(
                "no end-of-document token is defined",
                where=str(self.path),
                remedy="set eos_token in tokenizer_config.json",
            )
        if configured and found not in {*configured, *self._ids_from_config("eos", GENERATION)}:
            raise InputError(
                f"eos_token of tokenizer_config.json is id {found}, eos_token_id of config.json "
                f"is {' or '.join(map(str, configured))}",
                where=str(self.path),
                remedy="set the same token in both files",
            )
        return found

    def _ids_from_config(self, name: str, file: str = "config.json") -> list[int]:
        """Return the ids of a special token in a config of the model; eos may have several."""
        config: dict[str, Any] = read_json(self.path / file, {})
        value = config.get(f"{name}_token_id")
        ids = value if isinstance(value, list) else [value]
        return [i for i in ids if isinstance(i, int) and 0 <= i < len(self)]


AnyTokenizer = Tokenizer | HuggingFaceTokenizer


def open_tokenizer(folder: Path) -> AnyTokenizer:
    """Open the tokenizer of a Tokenizer or Model folder.

    Raises:
        InputError: the folder has no supported tokenizer.
    """
    if (folder / "tokenizer.json").exists() and not is_headwater_tokenizer(folder):
        return HuggingFaceTokenizer(folder)
    return Tokenizer(folder)


def has_tokenizer(folder: Path) -> bool:
    """Return whether a model folder has tokenizer files."""
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))


def _flatten(layout: dict[str, Any] | None, parts: str) -> Iterator[dict[str, Any]]:
    """Yield a decoder or normalizer, or those that a sequence lists under `parts`."""
    if layout is None:
        return
    if layout.get("type") != "Sequence":
        yield layout
    for part in layout.get(parts, []):
        yield from _flatten(part, parts)
