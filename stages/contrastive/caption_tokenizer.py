"""Tokenization of captions for the text tower: bos, the text, eos, padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from stages.data.tokenizers.huggingface_tokenizer import HuggingFaceEncoder
from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
from stages.models.clip.configuration_clip import TextConfig

_LENGTH_MULTIPLE = 4  # lengths are rounded up to it, so that batches have few shapes


class CaptionTokenizer(Protocol):
    """A tokenizer that encodes texts without special tokens."""

    def __len__(self) -> int: ...

    @property
    def digest(self) -> str:
        """Digest of all that determines the ids of a text."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""


def open_caption_tokenizer(folder: Path) -> CaptionTokenizer:
    """Open the tokenizer of a Tokenizer or Model folder: Headwater's, or any `tokenizer.json`.

    Raises:
        InputError: the folder has no tokenizer, or it cannot be read.
    """
    is_headwater = (folder / "tokenizer.model").exists() or not (folder / "tokenizer.json").exists()
    return Tokenizer(folder) if is_headwater else HuggingFaceEncoder(folder)


def encode_captions(
    tokenizer: CaptionTokenizer, texts: Sequence[str], config: TextConfig, *, trim: bool = True
) -> Tensor:
    """Return ids_BT of captions; those longer than the context are truncated before the eos.

    Args:
        tokenizer: encodes the texts.
        texts: captions, B of them.
        config: text tower that reads them.
        trim: let T be what the longest caption needs instead of the context length; the text tower
            does not read past an eos.
    """
    rows = [add_special_tokens(ids, config) for ids in tokenizer.encode_batch(texts)]
    return pad_captions(rows, config, trim=trim)


def add_special_tokens(ids: Sequence[int], config: TextConfig) -> list[int]:
    """Return the ids of a text, truncated to the context, between bos and eos."""
    return [config.bos, *ids[: config.context_length - 2], config.eos]


def pad_captions(rows: Sequence[Sequence[int]], config: TextConfig, *, trim: bool = True) -> Tensor:
    """Return rows of ids as one padded tensor ids_BT."""
    longest = max(map(len, rows))
    rounded = -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
    length = min(rounded, config.context_length) if trim else config.context_length
    return torch.tensor([[*row, *[config.pad] * (length - len(row))] for row in rows])
