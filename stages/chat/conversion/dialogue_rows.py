"""Rows that become conversations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from stages.chat.conversion.row_reader import Json, KeptRow, RowReader, message_rows, stored_texts
from stages.chat.row_formats.row_format import RowFormat
from stages.chat.row_options import RowOptions
from stages.chat.turn_checks import check_dialogue
from stages.chat.turns import Dialogue, Row
from stages.data.conversation_dataset import Conversation, write_conversations


class DialogueRows(RowReader[Dialogue]):
    """Reader of the dialogues of rows."""

    wanted = "dialogues"
    noun = "conversations"
    nothing = "no_answer"

    def find(self, row_format: RowFormat, row: Row, options: RowOptions) -> list[Dialogue]:
        """Return the dialogues of a row."""
        return row_format.dialogues(row, options)

    def check(self, found: Dialogue, options: RowOptions) -> tuple[Dialogue, tuple[str, ...]]:
        """Return a dialogue in order, with the names of what was shortened."""
        return check_dialogue(found, options)

    def store(self, found: Dialogue) -> Json:
        """Return a dialogue as JSON."""
        tools = {"tools": list(found.tools)} if found.tools else {}
        return {"messages": message_rows(found.messages), "meta": found.meta, **tools}

    def texts(self, data: Json) -> list[str]:
        """Return the texts of all messages."""
        return list(stored_texts(data["messages"]))

    def write(self, out: Path, kept: Iterable[KeptRow]) -> int:
        """Write Conversations."""
        return write_conversations(
            out,
            (
                Conversation(
                    row.id, row.messages, row.split, row.meta, tuple(row.data.get("tools", ()))
                )
                for row in kept
            ),
        )

    def sample(self, data: Json) -> Sequence[tuple[str, str]]:
        """Return the messages in order."""
        return [(message["role"], _shown(message)) for message in data["messages"]]


def _shown(message: Json) -> str:
    calls = message["tool_calls"]
    return "\n".join(text for text in (message["content"], calls) if text)
