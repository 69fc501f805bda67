"""JSON as other programs write it, and values of any table as JSON.

Python's own writer emits NaN, Infinity and lone surrogates, which the standard forbids. They cost
neither the record nor its other fields: a number that is not finite has no value, and half of a
surrogate pair is U+FFFD, as in the tokenizers.
"""

from __future__ import annotations

import json
import math
from typing import Any

import orjson

from stages.data.formats.surrogates import replace_surrogates


def parse_json(data: bytes | str) -> Any:
    """Parse one JSON value; numbers may be NaN or infinite, and surrogates alone.

    Raises:
        ValueError: it is not JSON, or is nested too deeply.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            return json.loads(data if isinstance(data, str) else data.decode())
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error


def as_json(value: Any) -> Any:
    """Return a value of a table as JSON can hold it: a number that is not finite becomes None,
    bytes their text, and what JSON lacks (dates, decimals) its own text.

    Raises:
        UnicodeDecodeError: bytes are not UTF-8.
        ValueError: it is nested too deeply.
    """
    try:
        return _as_json(value)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _as_json(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, dict):
        return {replace_surrogates(str(key)): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return replace_surrogates(value.decode() if isinstance(value, bytes) else str(value))
