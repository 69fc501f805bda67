"""Content digests of sources: independent of where the files are stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import xxhash

_BLOCK = 1 << 20


def file_digest(path: Path) -> str:
    """Return the xxh3-128 digest of a file's bytes.

    Raises:
        OSError: the file cannot be read.
    """
    state = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


def digest_rows(rows: Iterable[Sequence[str]]) -> str:
    """Return one digest of rows of texts, such as (source, place, digest of the file)."""
    state = xxhash.xxh3_128()
    for row in rows:
        state.update(("\0".join(row) + "\n").encode("utf-8", "surrogatepass"))
    return state.hexdigest()
