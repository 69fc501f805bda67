"""The forms of a row of a file: a dialogue, a ranking, or the reason why it is neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.data.conversation_dataset import Json, Message


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a source."""

    values: Mapping[str, Any]
    source: str
    """The file or dataset, as a user knows it."""
    place: str
    """`line 3` or `row 17` of the source."""


class RowError(Exception):
    """A row is left out.

    Args:
        reason: name of the count: `unreadable`, `no_answer`, `empty_answer`, `role_order`, ...
        field: field of the row, with its path (`messages[2].content`).
        detail: what is wrong with the field.
    """

    def __init__(self, reason: str, field: str, detail: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.reason, self.field, self.detail = reason, field, detail


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One conversation of a row, not yet checked."""

    messages: tuple[Message, ...]
    tools: tuple[Json, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Responses to one prompt with ranks, not yet checked; 0 is best, equal ranks are ties."""

    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    unranked: int = 0
    """Number of responses without a rank, which are not among these."""
    meta: dict[str, Any] = field(default_factory=dict)
