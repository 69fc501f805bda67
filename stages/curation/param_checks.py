"""Checks of parameters that several curation stages have."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.errors import Problem
from pipeline.stage import Params


def repeated_values(params: Params, *keys: str) -> Iterator[Problem]:
    """Yield a problem per list parameter that holds a value twice."""
    for key in keys:
        values = getattr(params, key)
        if len(set(values)) < len(values):
            yield Problem(key, "lists a value twice", "list each value once")
