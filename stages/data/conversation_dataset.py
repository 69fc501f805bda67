"""Conversations on disk: messages with roles; each conversation belongs to one split.

    part-00000.parquet   id, messages: list<struct<role, content, name, tool_calls, weight>>,
                         split, tools (JSON), meta (JSON)

Splits are `train`, `eval` and `unlabelled`; an unlabelled row has only the assistant's message, an
answer that a speaker model generates questions for. `tool_calls` and `tools` are JSON lists in the
schema that chat templates of `transformers` read; null if a message has no such list.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from pipeline.errors import InputError
from stages.data import kinds, parquet_parts
from stages.data.table_split import TableSplit

KIND = kinds.CONVERSATIONS.name
VERSION = 2
SPLITS = ("train", "eval", "unlabelled")
ROLES = ("system", "user", "assistant", "tool")

Role = Literal["system", "user", "assistant", "tool"]
Json = dict[str, Any]

MESSAGES = pa.list_(
    pa.struct(
        [
            ("role", pa.string()),
            ("content", pa.string()),
            ("name", pa.string()),
            ("tool_calls", pa.string()),
            ("weight", pa.float32()),
        ]
    )
)
SCHEMA = parquet_parts.versioned_schema(
    pa.schema(
        [
            ("id", pa.string()),
            ("messages", MESSAGES),
            ("split", pa.string()),
            ("tools", pa.string()),
            ("meta", pa.string()),
        ]
    ),
    KIND,
    VERSION,
)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str
    name: str | None = None
    """Name of the speaker, or of the tool that answers."""
    tool_calls: tuple[Json, ...] = ()
    """Calls of tools: `{"type": "function", "function": {"name": ..., "arguments": {...}}}`."""
    weight: float = 1.0
    """Weight of the message in the loss; 0 for a message that is read and not learned."""

    def as_row(self) -> dict[str, Any]:
        """Return the message as a struct of the table."""
        calls = json.dumps(self.tool_calls, sort_keys=True) if self.tool_calls else None
        return {
            "role": self.role,
            "content": self.content,
            "name": self.name,
            "tool_calls": calls,
            "weight": self.weight,
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Message:
        """Build a message from a struct of the table."""
        calls = tuple(json.loads(row["tool_calls"] or "[]"))
        return cls(row["role"], row["content"], row["name"], calls, row["weight"])


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order, with their split."""

    id: str
    messages: tuple[Message, ...]
    split: str = "train"
    meta: dict[str, Any] = field(default_factory=dict)
    tools: tuple[Json, ...] = ()
    """JSON schemas of the tools that the assistant may call."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All messages except a final one of the assistant."""
        return self.messages[:-1] if self.messages[-1].role == "assistant" else self.messages

    @property
    def response(self) -> str:
        """The final message of the assistant, or an empty string."""
        last = self.messages[-1]
        return last.content if last.role == "assistant" else ""


def write_conversations(out: Path, conversations: Iterable[Conversation]) -> int:
    """Write conversations in the order given.

    Returns:
        The number of conversations written.

    Raises:
        InputError: a split or role is unknown, or a conversation is empty.
    """
    with parquet_parts.PartWriter(Path(out), SCHEMA) as writer:
        for conversation in conversations:
            _check(conversation)
            tools = conversation.tools
            writer.write(
                {
                    "id": conversation.id,
                    "messages": [message.as_row() for message in conversation.messages],
                    "split": conversation.split,
                    "tools": json.dumps(tools, sort_keys=True) if tools else None,
                    "meta": json.dumps(conversation.meta, sort_keys=True),
                }
            )
    return writer.rows


def _check(conversation: Conversation) -> None:
    wrong = [m.role for m in conversation.messages if m.role not in ROLES]
    if not conversation.messages or wrong or conversation.split not in SPLITS:
        raise InputError(
            f"conversation {conversation.id!r}: roles {wrong or 'missing'}, "
            f"split {conversation.split!r}",
            remedy=f"roles are {', '.join(ROLES)}; splits are {', '.join(SPLITS)}",
        )


class Conversations(TableSplit[Conversation]):
    """The conversations of one split, or of all if `split` is None, by position."""

    kind, version, schema = KIND, VERSION, SCHEMA

    def from_row(self, row: dict[str, Any]) -> Conversation:
        """Build a conversation."""
        messages = tuple(Message.from_row(message) for message in row["messages"])
        meta, tools = json.loads(row["meta"]), tuple(json.loads(row["tools"] or "[]"))
        return Conversation(row["id"], messages, row["split"], meta, tools)
