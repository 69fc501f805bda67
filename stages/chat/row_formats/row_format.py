"""A format of rows: which rows are of it, and what dialogues or rankings they hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from pipeline.errors import InputError
from stages.chat.row_options import RowOptions
from stages.chat.turns import Dialogue, Ranking, Row, RowError

T = TypeVar("T")
Values = Mapping[str, Any]
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
"""Fields of media, whose places in the text are learned wrongly without them."""


class RowFormat(ABC):
    """One format. A new one is a file in this folder and an entry in `format_registry`.

    A subclass reads values by the names of the format; errors name the fields of the file.
    """

    name: ClassVar[str]
    fields: ClassVar[tuple[str, ...]]
    """Names of the fields that it reads."""
    has_rankings: ClassVar[bool] = False

    @abstractmethod
    def matches(self, values: Values) -> bool:
        """Return whether a row has the fields of the format."""

    @abstractmethod
    def read_dialogues(self, values: Values, options: RowOptions) -> list[Dialogue]:
        """Return the dialogues of a row.

        Raises:
            RowError: it holds none that can be read.
        """

    def read_rankings(self, values: Values, options: RowOptions) -> list[Ranking]:
        """Return the rankings of a row.

        Raises:
            InputError: rows of the format hold no rankings.
            RowError: this row holds none that can be read.
        """
        raise InputError(
            f"rows of format {self.name} hold no rankings",
            where="sources",
            remedy="read them with the stage conversations",
        )

    def dialogues(self, row: Row, options: RowOptions) -> list[Dialogue]:
        """Return the dialogues of a row; see `read_dialogues`."""
        return _by_own_names(self.read_dialogues, row, options)

    def rankings(self, row: Row, options: RowOptions) -> list[Ranking]:
        """Return the rankings of a row; see `read_rankings`."""
        return _by_own_names(self.read_rankings, row, options)


def _by_own_names(
    read: Callable[[Values, RowOptions], list[T]], row: Row, options: RowOptions
) -> list[T]:
    for name in MEDIA:
        if row.values.get(name):
            raise RowError("not_text", name, "the row refers to media, and only text is read")
    try:
        return read(options.renamed(row.values), options)
    except RowError as error:
        raise RowError(error.reason, options.own_name(error.field), error.detail) from None
