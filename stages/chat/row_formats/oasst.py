"""Message trees of Open Assistant: each message has replies, and those of a prompt have ranks.

{"message_tree_id": "…", "prompt": {"role": "prompter", "text": "…", "replies": [
    {"role": "assistant", "text": "…", "rank": 0, "replies": [...]}, ...]}}

A dialogue is a path from the first message to one without replies; a ranking is what several
assistants replied to one message. Deleted messages and their replies are not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stages.chat.row_formats.message_parsing import LARGEST, UNREADABLE, parse_turn
from stages.chat.row_formats.row_format import RowFormat, Values
from stages.chat.row_options import RowOptions
from stages.chat.turns import Dialogue, Ranking, RowError
from stages.data.conversation_dataset import Message


@dataclass(frozen=True, slots=True)
class _Node:
    """A message of a tree with its place and its rank among the replies to one message."""

    message: Message
    field: str
    rank: float | None
    replies: Sequence[tuple[str, Any]]
    """Places and values of the replies."""


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
        for path in _paths(values, options):
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
        """Return the ranked replies of each message with several; those without rank are counted
        and left out."""
        rankings = []
        for path in _paths(values, options):
            replies = [_node(reply, field, options) for field, reply in path[-1].replies]
            answers = [node for node in replies if node.message.role == "assistant"]
            ranked = [(n.message.content, n.rank) for n in answers if n.rank is not None]
            if len(answers) < 2:
                continue
            texts = tuple(text for text, _ in ranked)
            levels = sorted({rank for _, rank in ranked})
            ranks = tuple(levels.index(rank) for _, rank in ranked)
            prompt = tuple(node.message for node in path)
            rankings.append(Ranking(prompt, texts, ranks, unranked=len(answers) - len(ranked)))
        return rankings


def _paths(values: Values, options: RowOptions) -> Iterator[_Path]:
    """Yield the path to every message, depth first.

    Raises:
        RowError: a message cannot be read.
    """
    waiting: list[_Path] = [(_node(values.get("prompt"), "prompt", options),)]
    while waiting:
        path = waiting.pop()
        yield path
        found = [_node(reply, field, options) for field, reply in path[-1].replies]
        waiting += [(*path, node) for node in reversed(found)]


def _node(value: Any, field: str, options: RowOptions) -> _Node:
    message = parse_turn(value, field, options)
    rank, replies = value.get("rank"), value.get("replies") or []
    number = isinstance(rank, int | float) and not isinstance(rank, bool)
    if rank is not None and not (number and abs(rank) <= LARGEST):
        raise RowError(UNREADABLE, f"{field}.rank", "expected a number")
    if not isinstance(replies, list):
        raise RowError(UNREADABLE, f"{field}.replies", "expected a list of messages")
    placed = [
        (f"{field}.replies[{at}]", reply)
        for at, reply in enumerate(replies)
        if not (isinstance(reply, Mapping) and reply.get("deleted") is True)
    ]
    return _Node(message, field, rank, placed)
