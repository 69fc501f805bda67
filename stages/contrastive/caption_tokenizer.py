"""Captions as the text tower reads them: bos, the text, eos, padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
import xxhash
from torch import Tensor

from pipeline.errors import InputError
from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
from stages.models.clip.configuration_clip import TextConfig

_STEP = 4
"""Lengths are rounded up to it, so that batches come in few shapes."""


class Words(Protocol):
    """What is asked of a tokenizer: ids of texts, without marks."""

    def __len__(self) -> int: ...

    @property
    def digest(self) -> str:
        """A name of all that decides the ids of a text."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""


class Foreign:
    """The tokenizer of a CLIP folder that somebody else made: its `tokenizer.json`."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as FastTokenizer

        content = path.read_bytes()
        self.digest = xxhash.xxh3_128_hexdigest(content)
        self._fast = FastTokenizer.from_str(content.decode())
        self._fast.no_padding()
        self._fast.no_truncation()

    def __len__(self) -> int:
        return int(self._fast.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without marks."""
        ids: list[int] = self._fast.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without marks."""
        return [self.encode(text) for text in texts]


def open_words(folder: Path) -> Words:
    """The tokenizer of a Tokenizer or Model folder, ours or anybody's.

    Raises:
        InputError: there is none.
    """
    foreign = folder / "tokenizer.json"
    if (folder / "tokenizer.model").exists() or not foreign.exists():
        return Tokenizer(folder)
    try:
        return Foreign(foreign)
    except Exception as error:  # the library raises no type of its own
        raise InputError(f"cannot read the tokenizer: {error}", where=str(foreign)) from error


def encode(
    tokenizer: Words, texts: Sequence[str], shape: TextConfig, *, trim: bool = True
) -> Tensor:
    """Ids_BT of captions. Those longer than the context lose their end, but not its mark.

    Trimmed, T is what the longest needs: nothing right of an end is ever looked at.
    """
    rows = [mark(ids, shape) for ids in tokenizer.encode_batch(texts)]
    return pad(rows, shape, trim=trim)


def mark(ids: Sequence[int], shape: TextConfig) -> list[int]:
    """The ids of a text, cut to fit, between its two marks."""
    return [shape.bos, *ids[: shape.context_length - 2], shape.eos]


def pad(rows: Sequence[Sequence[int]], shape: TextConfig, *, trim: bool = True) -> Tensor:
    """Rows of ids as one tensor."""
    longest = max(map(len, rows))
    length = (
        min(-(-longest // _STEP) * _STEP, shape.context_length) if trim else shape.context_length
    )
    return torch.tensor([[*row, *[shape.pad] * (length - len(row))] for row in rows])
