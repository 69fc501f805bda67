"""Conversations of ShareGPT: turns with `from` and `value`, any role words.

{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}], "system": "…"}
"""

from __future__ import annotations

from stages.chat.row_formats.openai_messages import parse_turn_list, turn_list_field
from stages.chat.row_formats.row_format import RowFormat, Values
from stages.chat.row_options import RowOptions
from stages.chat.turns import Dialogue


class ShareGPT(RowFormat):
    """Reader of `conversations`."""

    name = "sharegpt"
    fields = ("conversations", "system", "tools")

    def matches(self, values: Values) -> bool:
        """Return whether a row has a list of turns."""
        return turn_list_field(values) is not None

    def read_dialogues(self, values: Values, options: RowOptions) -> list[Dialogue]:
        """Return the dialogue of a row."""
        return [parse_turn_list(values, options, "conversations")]
