"""Pairs: a prompt with a chosen and a rejected response, as texts or as messages.

{"prompt": "…", "chosen": "…", "rejected": "…"}
{"conversations": [turns], "chosen": {turn}, "rejected": {turn}}
{"chosen": [turns], "rejected": [turns]}          the prompt is what both begin with; also of texts
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from stages.chat.row_formats.alpaca import parse_history
from stages.chat.row_formats.message_parsing import (
    LARGEST,
    is_turn_list,
    optional_text,
    parse_text,
    parse_tools,
    parse_turn,
    parse_turns,
    system_message,
)
from stages.chat.row_formats.openai_messages import LISTS
from stages.chat.row_formats.prompt_completion import join_question
from stages.chat.row_formats.row_format import RowFormat, Values
from stages.chat.row_options import RowOptions
from stages.chat.turns import Dialogue, Ranking, RowError
from stages.data.conversation_dataset import Message

QUESTIONS = ("prompt", "question", "instruction", "input")
CHOSEN, REJECTED = ("chosen", "chosen_response"), ("rejected", "rejected_response")
SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"))


class ChosenRejected(RowFormat):
    """Reader of `chosen` and `rejected`."""

    name = "chosen_rejected"
    fields = (
        *QUESTIONS,
        *("messages", "conversations", "history", "chosen", "rejected"),
        *("system", "tools", "margin"),
    )
    has_rankings = True

    def matches(self, values: Values) -> bool:
        """Return whether a row has both fields."""
        return all(_name(values, names) for names in (CHOSEN, REJECTED))

    def read_dialogues(self, values: Values, options: RowOptions) -> list[Dialogue]:
        """Return the prompt with the chosen response."""
        [ranking] = self.read_rankings(values, options)
        chosen = Message("assistant", ranking.responses[0])
        return [Dialogue((*ranking.prompt, chosen), parse_tools(values), meta=ranking.meta)]

    def read_rankings(self, values: Values, options: RowOptions) -> list[Ranking]:
        """Return the pair of a row."""
        prompt = _prompt(values, options)
        names = [_name(values, names) or names[0] for names in (CHOSEN, REJECTED)]
        if not prompt and not any(_is_turns(values.get(name)) for name in names):
            return [_text_pair(values, names)]
        chosen, rejected = (_turns(values, name, options) for name in names)
        if not prompt:
            prompt = _shared_prompt(chosen, rejected)
        responses = tuple(
            _response(turns, prompt, name)
            for turns, name in zip((chosen, rejected), names, strict=True)
        )
        if prompt and prompt[0].role != "system":
            prompt = (*system_message(values), *prompt)
        return [Ranking(prompt, responses, (0, 1), meta=_margin(values))]


def _prompt(values: Values, options: RowOptions) -> tuple[Message, ...]:
    for name in (*QUESTIONS, *LISTS):
        value = values.get(name)
        if value is None:
            continue
        if is_turn_list(value):
            return parse_turns(value, name, options)
        text = parse_text(value, name)
        if name == "instruction":
            question = join_question(text, optional_text(values, "input"))
            return (*parse_history(values), question)
        return (Message("user", text),)
    return ()


def _turns(values: Values, name: str, options: RowOptions) -> tuple[Message, ...]:
    value = values.get(name)
    if isinstance(value, Mapping):
        return (parse_turn(value, name, options),)
    if is_turn_list(value):
        return parse_turns(value, name, options)
    return (Message("assistant", parse_text(value, name)),)


def _name(values: Values, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if values.get(name) is not None), None)


def _is_turns(value: Any) -> bool:
    return isinstance(value, Mapping) or is_turn_list(value)


def _text_pair(values: Values, names: list[str]) -> Ranking:
    """Return the pair of two texts without a prompt, which is what both begin with.

    Raises:
        RowError: they are no texts, are equal, or begin with different words.
    """
    chosen, rejected = (parse_text(values.get(name), name) for name in names)
    if chosen == rejected:
        raise RowError("identical_responses", names[1], "equals the chosen text")
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    shared = "".join(character for character, _ in equal)
    while shared and not shared[-1].isspace():  # whole words
        shared = shared[:-1]
    prompt = shared.rstrip()
    if not prompt:
        raise RowError("no_prompt", "prompt", "no field holds it, and the texts share no words")
    turns = (*system_message(values), Message("user", prompt))
    pair = (chosen[len(prompt) :], rejected[len(prompt) :])
    return Ranking(turns, pair, (0, 1), meta=_margin(values))


def _shared_prompt(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[Message, ...]:
    """Return the messages that precede the last one of both.

    Raises:
        RowError: they differ.
    """
    if chosen[:-1] != rejected[:-1]:
        raise RowError("prompts_differ", "rejected", "begins with another prompt than chosen")
    return chosen[:-1]


def _response(turns: tuple[Message, ...], prompt: tuple[Message, ...], field: str) -> str:
    """Return the text of the only message after the prompt.

    Raises:
        RowError: there are other messages, or it is not one of the assistant's text.
    """
    added = turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
    asked = [message for message in prompt if message.role == "user"]
    if len(added) == 2 and [added[0]] == asked[-1:]:  # the last question is repeated
        added = added[1:]
    if len(added) != 1 or added[0].role != "assistant":
        roles = ", ".join(message.role for message in added) or "nothing"
        raise RowError("response_turns", field, f"expected one message of the assistant: {roles}")
    if added[0].tool_calls:
        raise RowError("not_text", field, "a response that calls tools cannot be ranked")
    return added[0].content


def _margin(values: Values) -> dict[str, Any]:
    """Return the margin of the pair, from `margin` or from the scores of both, where given."""
    if (given := _number(values.get("margin"))) is not None:
        return {"margin": given}
    for better, worse in SCORES:
        high, low = _number(values.get(better)), _number(values.get(worse))
        if high is not None and low is not None:
            return {"margin": high - low}
    return {}


def _number(value: Any) -> float | None:
    """Return a finite number, or None for another value."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and abs(value) <= LARGEST else None
