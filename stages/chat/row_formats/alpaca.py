"""Rows of Alpaca: an instruction, its input, and the output.

{"instruction": "…", "input": "…", "output": "…", "system": "…", "history": [["…", "…"]]}
"""

from __future__ import annotations

import json

from stages.chat.row_formats.message_parsing import (
    UNREADABLE,
    optional_text,
    parse_text,
    parse_tools,
    system_message,
)
from stages.chat.row_formats.prompt_completion import is_reflection, join_question
from stages.chat.row_formats.row_format import RowFormat, Values
from stages.chat.row_options import RowOptions
from stages.chat.turns import Dialogue, RowError
from stages.data.conversation_dataset import Message


class Alpaca(RowFormat):
    """Reader of instructions with their outputs."""

    name = "alpaca"
    fields = ("instruction", "input", "output", "system", "history", "tools")

    def matches(self, values: Values) -> bool:
        """Return whether a row has an instruction and an output that is not to be corrected."""
        return "instruction" in values and "output" in values and not is_reflection(values)

    def read_dialogues(self, values: Values, options: RowOptions) -> list[Dialogue]:
        """Return the dialogue of a row; the input follows the instruction on a new line."""
        question = join_question(
            parse_text(values.get("instruction"), "instruction"), optional_text(values, "input")
        )
        answer = Message("assistant", _output(values))
        turns = (*system_message(values), *parse_history(values), question, answer)
        return [Dialogue(turns, parse_tools(values))]


def _output(values: Values) -> str:
    """Return the output.

    Raises:
        RowError: it is not one text.
    """
    value = values.get("output")
    if isinstance(value, list) and len(value) > 1 and all(isinstance(text, str) for text in value):
        raise RowError(
            UNREADABLE, "output", "expected one text; write pairs in the fields chosen and rejected"
        )
    return parse_text(value, "output")


def parse_history(values: Values) -> tuple[Message, ...]:
    """Return the earlier turns: a list of pairs of question and answer.

    Raises:
        RowError: it is another value.
    """
    pairs = values.get("history") or []
    if isinstance(pairs, str):
        try:
            pairs = json.loads(pairs)
        except (ValueError, RecursionError) as error:
            raise RowError(UNREADABLE, "history", f"expected JSON: {error}") from None
    if not isinstance(pairs, list):
        raise RowError(UNREADABLE, "history", "expected a list of pairs")
    turns: list[Message] = []
    for at, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(UNREADABLE, f"history[{at}]", "expected a question and its answer")
        asked, answered = (parse_text(text, f"history[{at}][{n}]") for n, text in enumerate(pair))
        turns += [Message("user", asked), Message("assistant", answered)]
    return tuple(turns)
