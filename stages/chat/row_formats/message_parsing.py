"""Messages as files store them: role words, texts in parts, tool calls, weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from stages.chat.row_options import RowOptions
from stages.chat.turns import RowError
from stages.data.conversation_dataset import Json, Message, Role

UNREADABLE = "unreadable"
ROLE_WORDS: Mapping[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "customer", "instruction"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai", "bing", "bard", "agent"),
        "assistant",
    ),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(
        ("tool", "function", "observation", "ipython", "tool_response", "function_response"),
        "tool",
    ),
}
"""Role words of files, in lower case."""
CALL_WORDS = ("function_call", "tool_call")
"""Role words of a turn whose text is the JSON of a tool call."""
TURN_KEYS = (
    ("role", "content"),
    ("from", "value"),
    ("role", "value"),
    ("role", "text"),
    ("speaker", "text"),
)
"""Names of role and text in a turn."""
LARGEST = 2**53
"""Limit of numbers: whole ones up to it are exact as floats."""
LEARNED_KEYS = ("weight", "train", "training", "train_on_turn")
"""Names of what switches the loss of a turn."""


def is_turn_list(value: Any) -> bool:
    """Return whether a value is a list of turns, or its JSON as csv files store it."""
    turns = _decoded(value)
    return isinstance(turns, list) and all(isinstance(turn, Mapping) for turn in turns)


def parse_turns(value: Any, field: str, options: RowOptions) -> tuple[Message, ...]:
    """Return the messages of a list of turns.

    Raises:
        RowError: a turn is not an object with a known role and a text.
    """
    turns = _decoded(value)
    if not isinstance(turns, list):
        raise RowError(UNREADABLE, field, f"expected a list of messages, found {_kind(value)}")
    return tuple(parse_turn(turn, f"{field}[{at}]", options) for at, turn in enumerate(turns))


def parse_turn(turn: Any, field: str, options: RowOptions) -> Message:
    """Return the message of a turn.

    Raises:
        RowError: it is not an object with a known role and a text.
    """
    if not isinstance(turn, Mapping):
        raise RowError(UNREADABLE, field, f"expected a message, found {_kind(turn)}")
    keys = [pair for pair in TURN_KEYS if pair[0] in turn and turn[pair[0]] is not None]
    if not keys:
        raise RowError(UNREADABLE, field, f"no role among the keys {', '.join(map(str, turn))}")
    role_key, text_key = next((pair for pair in keys if pair[1] in turn), keys[0])
    word = turn[role_key]
    role = _role(word, f"{field}.{role_key}", options)
    calls = _tool_calls(turn, field)
    text = turn.get(text_key)
    if isinstance(word, str) and word.lower() in CALL_WORDS and not calls:
        calls, text = parse_tool_calls(_json_text(text, f"{field}.{text_key}"), field), ""
    content = "" if text is None and calls else parse_text(text, f"{field}.{text_key}")
    if role == "assistant" and turn.get("train_detail"):
        raise RowError(
            UNREADABLE, f"{field}.train_detail", "a turn is learned as a whole or not at all"
        )
    name = turn.get("name")
    return Message(
        role,
        content,
        name=name if isinstance(name, str) and name else None,
        tool_calls=calls if role == "assistant" else (),
        weight=_weight(turn, field),
    )


def parse_text(value: Any, field: str) -> str:
    """Return a text, or the texts of its parts `[{"type": "text", "text": ...}]` in one.

    Raises:
        RowError: it is another value, or has parts that are not text.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RowError(UNREADABLE, field, f"expected text, found {_kind(value)}")
    texts = []
    for at, part in enumerate(value):
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
            raise RowError("not_text", f"{field}[{at}]", f"expected a part of text, found {kind}")
        texts.append(text)
    return "".join(texts)


def optional_text(values: Mapping[str, Any], name: str) -> str:
    """Return the text of a field; empty if it is absent or null.

    Raises:
        RowError: it is another value.
    """
    value = values.get(name)
    return "" if value is None else parse_text(value, name)


def system_message(values: Mapping[str, Any]) -> tuple[Message, ...]:
    """Return the message of the field `system` or `system_prompt`, or nothing if it is empty.

    Raises:
        RowError: it is not text.
    """
    texts = (optional_text(values, name) for name in ("system", "system_prompt"))
    return tuple(Message("system", text) for text in texts if text.strip())[:1]


def parse_tools(values: Mapping[str, Any]) -> tuple[Json, ...]:
    """Return the tool schemas of the field `tools` or `functions`, a list or its JSON.

    Raises:
        RowError: it is another value.
    """
    for name in ("tools", "functions"):
        value = values.get(name)
        if value in (None, "", []):
            continue
        found = _json_text(value, name) if isinstance(value, str) else value
        listed = [found] if isinstance(found, Mapping) else found
        if not isinstance(listed, list) or not all(isinstance(tool, Mapping) for tool in listed):
            raise RowError(UNREADABLE, name, f"expected a list of tools, found {_kind(value)}")
        return tuple(_plain(tool) for tool in listed)
    return ()


def parse_tool_calls(value: Any, field: str) -> tuple[Json, ...]:
    """Return tool calls as `{"type": "function", "function": {"name", "arguments"}}`.

    Raises:
        RowError: a call has no name, or its arguments are not an object.
    """
    calls = [value] if isinstance(value, Mapping) else value
    if not isinstance(calls, list):
        raise RowError(UNREADABLE, field, f"expected a tool call, found {_kind(value)}")
    return tuple(_tool_call(call, field) for call in calls)


def _tool_call(call: Any, field: str) -> Json:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise RowError(UNREADABLE, field, "a tool call without a name")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = _json_text(arguments or "{}", f"{field}.arguments")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise RowError(UNREADABLE, f"{field}.arguments", f"expected an object: {_kind(arguments)}")
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    made = {"type": "function", "function": {"name": name, "arguments": _plain(arguments)}}
    return {**identity, **made}


def _tool_calls(turn: Mapping[str, Any], field: str) -> tuple[Json, ...]:
    for name in ("tool_calls", "function_call"):
        value = turn.get(name)
        if isinstance(value, str) and value:
            value = _json_text(value, f"{field}.{name}")
        if value:
            return parse_tool_calls(value, f"{field}.{name}")
    return ()


def _role(word: Any, field: str, options: RowOptions) -> Role:
    if not isinstance(word, str):
        raise RowError(UNREADABLE, field, f"expected a role, found {_kind(word)}")
    known = options.roles.get(word) or ROLE_WORDS.get(word.strip().lower())
    if known is None:
        raise RowError(
            "unknown_role", field, f"unknown role {word!r}; the key roles maps it to a role"
        )
    return cast("Role", known)


def _weight(turn: Mapping[str, Any], field: str) -> float:
    for name in LEARNED_KEYS:
        value = turn.get(name)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or not 0 <= value <= LARGEST:
            raise RowError(UNREADABLE, f"{field}.{name}", "expected true, false or a weight >= 0")
        return float(value)
    return 1.0


def _json_text(value: Any, field: str) -> Any:
    try:
        return json.loads(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(UNREADABLE, field, f"expected JSON: {error}") from None


def _decoded(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _plain(value: Mapping[str, Any]) -> Json:
    """Return an object without the nulls that Arrow adds for keys of other rows."""
    return {
        str(key): _plain(item) if isinstance(item, Mapping) else item
        for key, item in value.items()
        if item is not None
    }


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "nothing"}
    return names.get(type(value), f"a value of type {type(value).__name__}")
