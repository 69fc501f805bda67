"""Traditional, simplified and Japanese forms of Chinese characters, by OpenCC."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Any

_HAN = re.compile("[\u3400-\u9fff]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def to_simplified(text: str) -> str:
    """Convert traditional to simplified characters, by OpenCC's dictionary of characters and
    phrases; a text with lone surrogates is returned unchanged."""
    if text.isascii() or _LONE_SURROGATE.search(text):
        return text
    converted: str = _converter("t2s").convert(text)
    return converted


def japanese_share(text: str) -> float:
    """Return the share of Chinese characters in a form that only Japanese uses (OpenCC's
    dictionary); 1 for a text without Chinese characters."""
    found = _HAN.findall(text)
    if not found:
        return 1.0
    return sum(map(_only_japanese, found)) / len(found)


@lru_cache(1 << 15)
def _only_japanese(character: str) -> bool:
    changed: bool = _converter("jp2t").convert(character) != character
    return changed and bool(_converter("s2t").convert(character) == character)


@cache
def _converter(name: str) -> Any:
    import opencc

    return opencc.OpenCC(name)
