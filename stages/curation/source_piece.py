"""The unit of reading: a file of a source, or a part of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar


@dataclass(frozen=True, slots=True)
class SourcePiece:
    """A file, or a part of one, that is read in one go."""

    source: str
    """Name of the source in tables; the same wherever its files are stored."""
    place: str
    """Name of the file within the source; record ids are made from source, place and number."""
    path: str
    """Location on this machine, or a URL."""
    size: int = 0
    """Bytes that are read, approximately."""
    origin: int = 0
    """Position of the source in the list of sources."""

    @property
    def first_record(self) -> int:
        """Number of records of the file that come before the piece."""
        return 0


Piece = TypeVar("Piece", bound=SourcePiece)


def list_pieces(
    sources: Sequence[str], list_source: Callable[[str], Iterable[Piece]]
) -> list[Piece]:
    """Return the pieces of all sources in order, each with the position of its source."""
    return [
        replace(piece, origin=origin)
        for origin, source in enumerate(sources)
        for piece in list_source(source)
    ]
