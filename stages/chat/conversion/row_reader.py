"""Dialogues and rankings of rows: found, checked, stored and written by one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from stages.chat.row_formats.row_format import RowFormat
from stages.chat.row_options import RowOptions
from stages.chat.turns import Row
from stages.data.conversation_dataset import Message

Found = TypeVar("Found")
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class KeptRow:
    """A dialogue or ranking that is kept, as stored between the phases."""

    id: str
    data: Json
    split: str
    meta: Json

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages of a dialogue, or of the prompt of a ranking."""
        return tuple(map(Message.from_row, self.data["messages"]))


class RowReader(ABC, Generic[Found]):
    """Reader of one kind of rows; it has no state."""

    wanted: ClassVar[Literal["dialogues", "rankings"]]
    """Content of a row that is read."""
    noun: ClassVar[str]
    """Plural of what the stage makes, in messages and names of metrics."""
    nothing: ClassVar[str]
    """Reason to leave out a row that holds none."""

    @abstractmethod
    def find(self, row_format: RowFormat, row: Row, options: RowOptions) -> list[Found]:
        """Return what a row holds, not yet checked.

        Raises:
            RowError: it cannot be read.
        """

    @abstractmethod
    def check(self, found: Found, options: RowOptions) -> tuple[Found, tuple[str, ...]]:
        """Return it in order, with the names of what was shortened.

        Raises:
            RowError: it is left out.
        """

    @abstractmethod
    def store(self, found: Found) -> Json:
        """Return it as JSON, with the messages of its prompt or dialogue as `messages`."""

    @abstractmethod
    def texts(self, data: Json) -> list[str]:
        """Return all texts of what `store` returned."""

    @abstractmethod
    def write(self, out: Path, kept: Iterable[KeptRow]) -> int:
        """Write the artifact; return the number of what was written."""

    @abstractmethod
    def sample(self, data: Json) -> Sequence[tuple[str, str]]:
        """Return the parts of an example in the report: each with its name."""


def message_rows(messages: Iterable[Message]) -> list[Json]:
    """Return messages as structs of the artifact's table."""
    return [message.as_row() for message in messages]


def stored_texts(messages: Iterable[Json]) -> Iterator[str]:
    """Yield the texts of stored messages: contents and calls of tools."""
    for message in messages:
        yield message["content"]
        if message["tool_calls"]:
            yield message["tool_calls"]
