"""Traditional and simplified Chinese: one text in two scripts."""

from __future__ import annotations

from functools import cache
from typing import Any


def simplified(text: str) -> str:
    """Traditional characters as simplified ones, by OpenCC's dictionary of characters and
    phrases."""
    if text.isascii():
        return text
    converted: str = _converter().convert(text)
    return converted


@cache
def _converter() -> Any:
    import opencc

    return opencc.OpenCC("t2s")
