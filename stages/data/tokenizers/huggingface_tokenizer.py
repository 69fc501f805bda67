"""The tokenizer of a model that somebody else trained: a `tokenizer.json` of the hub.

Byte-level BPE (GPT-2, Llama 3, Qwen) and SentencePiece as `tokenizers` writes it (Llama 2) are
read. They bring a text back, or, where the tokenizer normalizes to NFC (Qwen), its NFC; what loses
more of a text, as lower case does, is refused. Which ids end and begin a document is what
`tokenizer_config.json` says, or `config.json` beside it, as in GPT-2's own folder.
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
from stages.data.tokenizers.sentencepiece_tokenizer import (
    SPACE,
    Tokenizer,
    is_headwater_tokenizer,
    replace_surrogates,
)

BYTE_LEVEL, SENTENCEPIECE = "ByteLevel", "ByteFallback"
_HARMLESS: tuple[dict[str, Any], ...] = (
    {"type": "NFC"},
    {"type": "ByteLevel"},
    {"type": "Prepend", "prepend": SPACE},
    {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
)
"""Normalizers whose work decoding undoes, and NFC."""


class HuggingFaceEncoder:
    """Encodes texts with a folder's `tokenizer.json`; any normalizer will do.

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
            self._layout: dict[str, Any] = json.loads(self._file)
        except Exception as error:  # the library raises no type of its own
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
    """Encodes and decodes with a folder's `tokenizer.json`, as `Tokenizer` does with ours.

    Text never yields a control id, here neither. There are no ids of the chat's roles.

    Raises:
        InputError: it cannot be read, does not bring texts back, or names no end of documents.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._kind = self._known_kind()
        self._check_normalizer()
        self.bos_id, self.pad_id = self._mark("bos"), self._mark("pad")
        self.eos_id = self._end()

    @property
    def vocab_size(self) -> int:
        """Ids of the tokenizer; the model may know more, which are never used."""
        return len(self)

    @property
    def padding_id(self) -> int:
        """What fills up where nobody looks."""
        return self.eos_id if self.pad_id is None else self.pad_id

    @cached_property
    def document_start_id(self) -> int:
        """What a document begins after: the id that the tokenizer begins texts with, if it does;
        else the end of the one before."""
        begun = self._fast.encode("", add_special_tokens=True).ids
        return self.bos_id if self.bos_id is not None and self.bos_id in begun else self.eos_id

    def special_token_id(self, token: str) -> int | None:
        """Return the id of a special token, which text never yields; None if there is none."""
        found: int | None = self._fast.token_to_id(token)
        return found if found in self._special else None

    def document(self, text: str) -> list[int]:
        """The ids of a text from its begin mark, if this tokenizer has one, to its end."""
        begin = [] if self.document_start_id == self.eos_id else [self.document_start_id]
        return [*begin, *self.encode(text), self.eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; control ids are silent, broken byte runs become U+FFFD."""
        text: str = self._fast.decode([int(i) for i in ids], skip_special_tokens=True)
        return text

    @property
    def digest(self) -> str:
        """A name of all that decides the ids of a text and its end."""
        return xxhash.xxh3_128_hexdigest(
            self._file + f"\n{self.document_start_id} {self.eos_id}".encode()
        )

    @cached_property
    def byte_counts(self) -> list[int]:
        """How many bytes of text each id stands for; control ids stand for none. Of SentencePiece
        that puts a space before a text, that space counts."""
        counts = [0] * len(self)
        for piece, i in self._fast.get_vocab(with_added_tokens=True).items():
            counts[i] = self._bytes_of(piece)
        for added in self._layout.get("added_tokens", []):
            counts[added["id"]] = 0 if added["special"] else len(added["content"].encode())
        return counts

    def _bytes_of(self, piece: str) -> int:
        if self._kind == BYTE_LEVEL:
            return len(piece)  # which is written with a character for each byte
        if len(piece) == 6 and piece.startswith("<0x"):
            return 1
        return len(piece.replace(SPACE, " ").encode())

    def _known_kind(self) -> str:
        kinds = {str(part.get("type")) for part in _flat(self._layout.get("decoder"), "decoders")}
        for kind in (BYTE_LEVEL, SENTENCEPIECE):
            if kind in kinds:
                return kind
        raise InputError(
            f"a tokenizer of this kind ({', '.join(sorted(kinds)) or 'no decoder'}) does not bring "
            "texts back",
            where=str(self.path / "tokenizer.json"),
            remedy="give a model with byte-level BPE, or SentencePiece with byte fallback",
        )

    def _check_normalizer(self) -> None:
        """See that texts are encoded as they are.

        Raises:
            InputError: something of them is lost before.
        """
        for normalizer in _flat(self._layout.get("normalizer"), "normalizers"):
            if normalizer not in _HARMLESS:
                raise InputError(
                    "the tokenizer loses something of texts: its normalizer "
                    f"{json.dumps(normalizer)}",
                    where=str(self.path / "tokenizer.json"),
                    remedy="give a model whose tokenizer has no normalizer, or NFC",
                )

    def _mark(self, name: str) -> int | None:
        """The id of a control token, by its name or number.

        Raises:
            InputError: what is named is no piece, or one that text may yield.
        """
        config: dict[str, Any] = read_json(self.path / "tokenizer_config.json", {})
        said = config.get(f"{name}_token")
        if said is None:
            found = next(iter(self._configured(name)), None)
        else:
            found = self._named(name, said.get("content", said) if isinstance(said, dict) else said)
        if found is not None and found not in self._special:
            raise InputError(
                f"the {name} token {self._fast.id_to_token(found)!r} is no special token, so that "
                "the text of a document may yield it",
                where=str(self.path / "tokenizer.json"),
                remedy="list it under added_tokens with special: true, or name another",
            )
        return found

    def _named(self, name: str, piece: Any) -> int:
        found: int | None = self._fast.token_to_id(piece) if isinstance(piece, str) else None
        if found is None:
            raise InputError(
                f"the {name} token {piece!r} of tokenizer_config.json is none of tokenizer.json's",
                where=str(self.path),
                remedy="take both files from the same model",
            )
        return found

    @cached_property
    def _special(self) -> frozenset[int]:
        """The ids that text never yields."""
        added = self._layout.get("added_tokens", [])
        return frozenset(token["id"] for token in added if token["special"])

    def _end(self) -> int:
        """The id that ends a document.

        Raises:
            InputError: there is none, or the model has another one.
        """
        found, configured = self._mark("eos"), self._configured("eos")
        if found is None:
            raise InputError(
                "nothing says which token ends a document",
                where=str(self.path),
                remedy="set eos_token in tokenizer_config.json",
            )
        if configured and found not in configured:
            raise InputError(
                f"eos_token of tokenizer_config.json is id {found}, eos_token_id of config.json "
                f"is {' or '.join(map(str, configured))}",
                where=str(self.path),
                remedy="have both say what ends a document",
            )
        return found

    def _configured(self, name: str) -> list[int]:
        """What the model's config says of a control token; of the end it may say several."""
        config: dict[str, Any] = read_json(self.path / "config.json", {})
        said = config.get(f"{name}_token_id")
        several = said if isinstance(said, list) else [said]
        return [number for number in several if isinstance(number, int) and 0 <= number < len(self)]


AnyTokenizer = Tokenizer | HuggingFaceTokenizer


def open_tokenizer(folder: Path) -> AnyTokenizer:
    """The tokenizer of a Tokenizer or Model folder, ours or anybody's.

    Raises:
        InputError: there is none that can be read.
    """
    if (folder / "tokenizer.json").exists() and not is_headwater_tokenizer(folder):
        return HuggingFaceTokenizer(folder)
    return Tokenizer(folder)


def has_tokenizer(folder: Path) -> bool:
    """Whether a model's folder has the files of one."""
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))


def _flat(layout: dict[str, Any] | None, parts: str) -> Iterator[dict[str, Any]]:
    """A decoder or normalizer, or those that a sequence lists under `parts`."""
    if layout is None:
        return
    if layout.get("type") != "Sequence":
        yield layout
    for part in layout.get(parts, []):
        yield from _flat(part, parts)
