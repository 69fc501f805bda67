"""Prompts of conversations, in chat format, for rollouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from pipeline.errors import InputError
from stages.chat.encoded_chats import open_chat_format
from stages.chat.encoded_table import EncodedTable, RecordEncoder
from stages.data.conversation_dataset import Conversation, Conversations


@dataclass(frozen=True)
class PromptEncoder(RecordEncoder[Conversation]):
    """The encoding of prompts in the chat format of a model. Those that are `too_long` are left
    out, and conversations with `no_prompt`."""

    folder: Path
    """Model whose tokenizer and chat template encode."""
    limit: int
    """Largest number of ids of a prompt."""
    schema: ClassVar[pa.Schema] = pa.schema([("ids", pa.list_(pa.int32()))])

    @property
    def identity(self) -> str:
        """The chat format and the limit."""
        return f"{open_chat_format(self.folder, None).digest} {self.limit}"

    def records(self, path: Path, split: str) -> Conversations:
        """Open the conversations of a split."""
        return Conversations(path, split)

    def encode(self, record: Conversation, counts: Counter[str]) -> Iterator[dict[str, Any]]:
        """Yield the row of a prompt, if it is not left out."""
        if (ids := self.prompt(record, counts)) is not None:
            yield {"ids": ids}

    def prompt(self, record: Conversation, counts: Counter[str]) -> list[int] | None:
        """Return the ids of a prompt, or None if it is left out, and count the outcome."""
        counts["read"] += 1
        if not record.prompt:
            counts["no_prompt"] += 1
            return None
        try:
            chat = open_chat_format(self.folder, None)
            ids = chat.encode_prompt(record.prompt, record.tools)
        except InputError:
            counts["refused_by_template"] += 1
            return None
        if len(ids) <= self.limit:
            return ids
        counts["too_long"] += 1
        return None


@dataclass(frozen=True)
class EncodedPrompts(Sequence[list[int]]):
    """The encoded prompts of a split, mapped into memory."""

    table: EncodedTable

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.table.column("ids", range(len(self))[index]).to_pylist()


def read_prompts(path: Path, split: str, folder: Path, max_prompt_length: int) -> list[list[int]]:
    """Return the prompts of a split, encoded in this process; see `PromptEncoder`."""
    encoder, counts = PromptEncoder(folder, max_prompt_length), Counter[str]()
    found = (encoder.prompt(record, counts) for record in encoder.records(path, split))
    return [ids for ids in found if ids is not None]


def require_prompts(
    count: int, counts: Mapping[str, int], encoder: PromptEncoder, path: Path
) -> None:
    """Check that there are prompts to train on.

    Raises:
        InputError: the split is empty, or all its prompts are left out.
    """
    if count:
        return
    if not counts["read"]:
        raise InputError(
            "there are no conversations to train on",
            where=str(path),
            remedy="give conversations with a split named train",
        )
    raise InputError(
        f"none of {counts['read']} prompts has at most {encoder.limit} tokens, the context less "
        "max_new_tokens",
        where=str(path),
        remedy="lower max_new_tokens, or take a policy with a longer context",
    )
