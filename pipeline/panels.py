"""What a stage shows people: plain data that the report draws without knowing the field.

A panel is a JSON object with a `type` and a `title`; the functions here are its only writers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Panel = dict[str, Any]
Number = int | float


def waterfall(title: str, unit: str, steps: Sequence[tuple[str, Number]]) -> Panel:
    """What was read, what each rule took away (negative), and what is left (the last step)."""
    return {"type": "waterfall", "title": title, "unit": unit, "steps": [list(s) for s in steps]}


def curve(title: str, keys: Sequence[str], *, log_y: bool = False, unit: str = "") -> Panel:
    """Lines over the steps of the stage's own metric series."""
    return {"type": "curve", "title": title, "keys": list(keys), "log_y": log_y, "unit": unit}


def bars(title: str, values: Mapping[str, Number], *, unit: str = "") -> Panel:
    """One bar a label."""
    return {"type": "bars", "title": title, "values": dict(values), "unit": unit}


def histogram(
    title: str,
    edges: Sequence[Number],
    counts: Sequence[int],
    *,
    thresholds: Sequence[float] = (),
    group: str = "",
) -> Panel:
    """Counts between edges (one edge more than counts), with lines at thresholds. Neighbours of one
    group are shown small, side by side, under its name."""
    return {
        "type": "histogram",
        "title": title,
        "edges": list(edges),
        "counts": list(counts),
        "thresholds": list(thresholds),
        "group": group,
    }


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Number]]) -> Panel:
    """A table; numbers are aligned right."""
    return {
        "type": "table",
        "title": title,
        "columns": list(columns),
        "rows": [list(row) for row in rows],
    }


def samples(title: str, items: Sequence[Mapping[str, str]]) -> Panel:
    """Texts side by side: one card an item, one column a key (prompt, before, after…)."""
    return {"type": "samples", "title": title, "items": [dict(item) for item in items]}


def browser(title: str, items: Sequence[Mapping[str, str]]) -> Panel:
    """Texts that people can search: `text` is the long field of an item, its others are labels."""
    return {"type": "browser", "title": title, "items": [dict(item) for item in items]}
