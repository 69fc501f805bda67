"""The unit of reading: a file of a source, or a part of one."""

from __future__ import annotations

import itertools
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
    """Return the pieces of all sources in order, each with the position of its source.

    Record ids are made from source and place. A source that has a place of an earlier one of its
    name (two folders `data`) is therefore named `data (2)`, whatever the paths: a moved folder
    keeps its ids.
    """
    pieces: list[Piece] = []
    places: dict[str, set[str]] = {}
    for origin, source in enumerate(sources):
        found: dict[str, list[Piece]] = {}
        for piece in list_source(source):
            found.setdefault(piece.source, []).append(piece)
        for plain, members in found.items():
            own = {piece.place for piece in members}
            names = (f"{plain} ({count})" if count > 1 else plain for count in itertools.count(1))
            name = next(name for name in names if own.isdisjoint(places.get(name, ())))
            places.setdefault(name, set()).update(own)
            pieces += [replace(piece, source=name, origin=origin) for piece in members]
    return pieces
