"""Plain data for files and JSON output: numbers are finite or null, secrets are their names.

JSON has no NaN. Every metric is read by `read_number`, also from older files, which hold NaN tokens
and the text "nan"; everything is written through `to_plain`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Set
from contextlib import suppress
from numbers import Real
from typing import Any

from pipeline.redaction import redact


def read_number(value: Any) -> float | None:
    """Return a value as a finite number; None for NaN, infinity, their names and anything else."""
    with suppress(TypeError, ValueError, OverflowError):
        if math.isfinite(number := float(value)):
            return number
    return None


def read_numbers(values: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the values of a mapping, each as `read_number` reads it."""
    return {str(name): read_number(value) for name, value in values.items()}


def to_plain(value: Any, secrets: Set[str] = frozenset()) -> Any:
    """Convert to JSON's own types; the values of secrets become their names, also in keys."""
    if isinstance(value, Mapping):
        return {redact(str(k), secrets): to_plain(item, secrets) for k, item in value.items()}
    if isinstance(value, list | tuple | Set):
        return [to_plain(item, secrets) for item in value]
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, Real):
        return read_number(value)
    # Lone surrogates, which file names contain, are not Unicode text.
    return redact(str(value), secrets).encode(errors="backslashreplace").decode()


def to_json(value: Any, secrets: Set[str] = frozenset(), **options: Any) -> str:
    """Encode as JSON that every parser accepts; `options` are those of `json.dumps`."""
    return json.dumps(to_plain(value, secrets), allow_nan=False, **options)
