"""Lone surrogates: half a UTF-16 pair, which Python strings can hold and UTF-8 cannot."""

from __future__ import annotations


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which cannot be encoded as UTF-8, by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
