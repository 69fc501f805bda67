"""Message trees of Open Assistant: each message has replies, and those of a prompt have ranks.

{"message_tree_id": "…", "prompt": {"role": "prompter", "text": "…", "replies": [
    {"role": "assistant", "text": "…", "rank": 0, "replies": [...]}, ...]}}

A dialogue is a path from the first message to one without replies; a ranking is what several
assistants replied to one message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stages.chat.row_formats.message_parsing import ROLE_WORDS, UNREADABLE, parse_text
from stages.chat.row_formats.row_format import RowFormat, Values
from stages.chat.row_options import RowOptions
from stages.chat.turns import Dialogue, Ranking, RowError
from stages.data.conversation_dataset import Message


@dataclass(frozen=True, slots=True)
class _Node:
    """A message of a tree with its place and its rank among the replies to one message."""

    message: Message
    field: str
    rank: int | None
    replies: Sequence[Any]


_Path = tuple[_Node, ...]


class OASST(RowFormat):
    """Reader of message trees."""

    name = "oasst"
    fields = ("prompt",)
    has_rankings = True

    def matches(self, values: Values) -> bool:
        """Return whether a row is a tree."""
        root = values.get("prompt")
        return isinstance(root, Mapping) and "replies" in root and "text" in root

    def read_dialogues(self, values: Values, options: RowOptions) -> list[Dialogue]:
        """Return the paths of the tree, in order.

        An answer that several paths share is learned in the first of them, and has weight 0 in the
        others, unless `options.replies` is `all`.
        """
        learned: set[str] = set()
        dialogues = []
        for path in _paths(values):
            if path[-1].replies:
                continue
            again = learned if options.replies == "once" else frozenset()
            messages = [
                replace(node.message, weight=0.0) if node.field in again else node.message
                for node in path
            ]
            dialogues.append(Dialogue(tuple(messages)))
            learned |= {node.field for node in path if node.message.role == "assistant"}
        return dialogues

    def read_rankings(self, values: Values, options: RowOptions) -> list[Ranking]:
        """Return the ranked replies of each message with several; those without rank are left
        out."""
        rankings = []
        for path in _paths(values):
            replies = [
                _node(reply, f"{path[-1].field}.replies[{at}]")
                for at, reply in enumerate(path[-1].replies)
            ]
            answers = [node for node in replies if node.message.role == "assistant"]
            ranked = [(n.message.content, n.rank) for n in answers if n.rank is not None]
            if len(ranked) < 2:
                continue
            texts, ranks = zip(*ranked, strict=True)
            prompt = tuple(node.message for node in path)
            rankings.append(Ranking(prompt, texts, ranks, unranked=len(answers) - len(ranked)))
        return rankings


def _paths(values: Values) -> Iterator[_Path]:
    """Yield the path to every message, depth first.

    Raises:
        RowError: a message cannot be read.
    """
    waiting: list[_Path] = [(_node(values.get("prompt"), "prompt"),)]
    while waiting:
        path = waiting.pop()
        yield path
        last = path[-1]
        found = [
            _node(reply, f"{last.field}.replies[{at}]") for at, reply in enumerate(last.replies)
        ]
        waiting += [(*path, node) for node in reversed(found)]


def _node(value: Any, field: str) -> _Node:
    if not isinstance(value, Mapping):
        raise RowError(UNREADABLE, field, "expected a message")
    word, rank, replies = value.get("role"), value.get("rank"), value.get("replies")
    role = ROLE_WORDS.get(word) if isinstance(word, str) else None
    if role is None:
        raise RowError("unknown_role", f"{field}.role", f"unknown role {word!r}")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int)):
        raise RowError(UNREADABLE, f"{field}.rank", "expected a whole number")
    if not isinstance(replies or [], list):
        raise RowError(UNREADABLE, f"{field}.replies", "expected a list of messages")
    message = Message(role, parse_text(value.get("text"), f"{field}.text"))
    return _Node(message, field, rank, replies or [])
