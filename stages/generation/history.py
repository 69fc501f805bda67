"""Messages before a prompt, from a file: a JSON list, a JSON object with `messages`, or JSON lines.

    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello, and you?"}]

A message may have a `name` and `tool_calls`, an object `tools`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.atomic_io import disk_errors
from pipeline.errors import InputError
from stages.data.conversation_dataset import ROLES, Json, Message
from stages.data.formats.json_values import parse_json


@dataclass(frozen=True)
class History:
    """Messages before a prompt."""

    messages: tuple[Message, ...] = ()
    tools: tuple[Json, ...] = ()
    """JSON schemas of the tools that the model may call."""


def read_history(path: Path) -> History:
    """Read the messages of a file.

    Raises:
        InputError: the file is missing, is not JSON, or holds something else than messages.
    """
    try:
        with disk_errors(path, to="read"):
            data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError("no such file", where=str(path)) from error
    try:
        found = parse_json(data)
    except ValueError:
        found = [
            _line(path, n, line) for n, line in enumerate(data.splitlines(), 1) if line.strip()
        ]
    rows = found.get("messages") if isinstance(found, dict) and "role" not in found else found
    rows = [rows] if isinstance(rows, dict) else rows
    tools = found.get("tools") or [] if isinstance(found, dict) else []
    if not isinstance(rows, list) or not isinstance(tools, list):
        raise InputError(
            "no list of messages",
            where=str(path),
            remedy='write [{"role": "user", "content": "..."}, ...]',
        )
    return History(tuple(_message(path, n, row) for n, row in enumerate(rows)), tuple(tools))


def _line(path: Path, number: int, line: bytes) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        raise InputError(f"not JSON: {error}", where=f"{path}:{number}") from error


def _message(path: Path, number: int, row: Any) -> Message:
    fields = row if isinstance(row, dict) else {}
    role, content, calls = (fields.get(key) for key in ("role", "content", "tool_calls"))
    where = f"{path}: messages[{number}]"
    if role not in ROLES:
        raise InputError(f"role {role!r}", where=where, remedy=f"roles are {', '.join(ROLES)}")
    if not isinstance(content, str) and not (content is None and calls):
        raise InputError("content is not a text", where=where)
    return Message(role, content or "", fields.get("name"), tuple(calls or ()))
