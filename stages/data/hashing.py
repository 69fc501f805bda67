"""Names and choices that depend on content alone: the same on every machine, in every order."""

from __future__ import annotations

import xxhash


def hash64(text: str) -> int:
    """xxh3-64 of the text's UTF-8 (lone surrogates pass): an integer below 2**64."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def name128(*parts: str) -> str:
    """32 hex digits that name the parts: xxh3-128 of them, a NUL between."""
    return xxhash.xxh3_128_hexdigest("\0".join(parts).encode("utf-8", "surrogatepass"))


def fraction(text: str) -> float:
    """A number in [0, 1) that the text decides: splits by `fraction(id) < share`."""
    return hash64(text) / 2.0**64
