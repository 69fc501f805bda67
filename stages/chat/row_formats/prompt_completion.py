"""A question with its answer in two fields, as texts or as messages.

{"prompt": "…", "completion": "…"}    {"question": "…", "answer": "…", "system_prompt": "…"}
{"prompt": [turns], "completion": [turns]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.chat.row_formats.message_parsing import (
    is_turn_list,
    optional_text,
    parse_text,
    parse_tools,
    parse_turn,
    parse_turns,
    system_message,
)
from stages.chat.row_formats.row_format import RowFormat, Values
from stages.chat.row_options import RowOptions
from stages.chat.turns import Dialogue
from stages.data.conversation_dataset import Message

PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "generation"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("question", "completion"),
    ("instruction", "response"),
    ("instruction", "completion"),
    ("INSTRUCTION", "RESPONSE"),
    ("input", "output"),
    ("message_1", "message_2"),
)
"""Names of question and answer."""
PARTS = ("context", "article", "choices")
"""Fields that belong to a question, and that a prompt must hold."""
CONTEXTS = ("context", "input")
"""Fields that follow an instruction as a paragraph of the question."""


class PromptCompletion(RowFormat):
    """Reader of questions and answers."""

    name = "prompt_completion"
    fields = ("prompt", "completion", "system", "system_prompt", "context", "tools")

    def matches(self, values: Values) -> bool:
        """Return whether a row has both fields of a pair, and no further part of a question."""
        pair = _pair(values)
        if pair is None or pair[0].lower() == "instruction":
            return pair is not None
        return not is_reflection(values) and not any(values.get(name) for name in PARTS)

    def read_dialogues(self, values: Values, options: RowOptions) -> list[Dialogue]:
        """Return the dialogue of a row."""
        asked, answered = _pair(values) or PAIRS[0]
        prompt = parse_side(values, asked, "user", options)
        if asked.lower() == "instruction" and len(prompt) == 1:
            context = next((text for name in CONTEXTS if (text := optional_text(values, name))), "")
            prompt = (join_question(prompt[0].content, context),)
        answer = parse_side(values, answered, "assistant", options)
        given = () if prompt and prompt[0].role == "system" else system_message(values)
        return [Dialogue((*given, *prompt, *answer), parse_tools(values))]


def is_reflection(values: Values) -> bool:
    """Return whether the answer of a row is a draft with a reflection and its correction."""
    return all(values.get(name) is not None for name in ("reflection", "corrected"))


def parse_side(values: Values, name: str, role: Any, options: RowOptions) -> tuple[Message, ...]:
    """Return the messages of a field: a text by `role`, one turn, or a list of turns.

    Raises:
        RowError: it is another value.
    """
    value = values.get(name)
    if isinstance(value, Mapping):
        return (parse_turn(value, name, options),)
    if isinstance(value, list) or is_turn_list(value):
        return parse_turns(value, name, options)
    return (Message(role, parse_text(value, name)),)


def join_question(question: str, added: str) -> Message:
    """Return a question with what it refers to on the next line."""
    parts = [text for text in (question, added) if text.strip()]
    return Message("user", "\n".join(parts) if added.strip() else question)


def _pair(values: Values) -> tuple[str, str] | None:
    return next((pair for pair in PAIRS if all(values.get(n) is not None for n in pair)), None)
