"""Messages with role and content, as in OpenAI's fine-tuning files.

{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}], "tools": …}
"""

from __future__ import annotations

from typing import Any

from stages.chat.row_formats.message_parsing import (
    is_turn_list,
    parse_tools,
    parse_turns,
    system_message,
)
from stages.chat.row_formats.row_format import RowFormat, Values
from stages.chat.row_options import RowOptions
from stages.chat.turns import Dialogue

LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns")
"""Names of the field that holds the turns."""


class OpenAIMessages(RowFormat):
    """Reader of `messages`."""

    name = "messages"
    fields = ("messages", "tools", "functions", "system")

    def matches(self, values: Values) -> bool:
        """Return whether a row has a list of messages with `role` and `content`."""
        field = turn_list_field(values)
        return field == "messages" or bool(field and _has_roles(values[field]))

    def read_dialogues(self, values: Values, options: RowOptions) -> list[Dialogue]:
        """Return the dialogue of a row."""
        return [parse_turn_list(values, options, "messages")]


def turn_list_field(values: Values) -> str | None:
    """Return the name of the field that holds a list of turns, if there is one."""
    return next((name for name in LISTS if is_turn_list(values.get(name))), None)


def parse_turn_list(values: Values, options: RowOptions, default: str) -> Dialogue:
    """Return the dialogue of a row with a list of turns; its own system message comes first.

    Raises:
        RowError: a turn cannot be read, or no field holds turns; `default` names the field then.
    """
    field = turn_list_field(values) or default
    turns = parse_turns(values.get(field), field, options)
    given = system_message(values) if not turns or turns[0].role != "system" else ()
    return Dialogue((*given, *turns), parse_tools(values))


def _has_roles(turns: Any) -> bool:
    return isinstance(turns, list) and any("role" in turn for turn in turns)
