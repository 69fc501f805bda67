"""Panels: plain data that the report of a run draws without knowing the field.

A panel is a JSON object with a `type` and a `title`; only the functions here create one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Panel = dict[str, Any]
Number = int | float


def waterfall(title: str, unit: str, steps: Sequence[tuple[str, Number]]) -> Panel:
    """Draw what was read, what each rule removed (negative), and what is left (the last step)."""
    return {"type": "waterfall", "title": title, "unit": unit, "steps": [list(s) for s in steps]}


def curve(title: str, keys: Sequence[str], *, log_y: bool = False, unit: str = "") -> Panel:
    """Draw lines over the steps of the stage's own metric series."""
    return {"type": "curve", "title": title, "keys": list(keys), "log_y": log_y, "unit": unit}


def bars(title: str, values: Mapping[str, Number], *, unit: str = "") -> Panel:
    """Draw one bar per label."""
    return {"type": "bars", "title": title, "values": dict(values), "unit": unit}


def histogram(
    title: str,
    edges: Sequence[Number],
    counts: Sequence[int],
    *,
    thresholds: Sequence[float] = (),
    group: str = "",
) -> Panel:
    """Draw counts between edges (one edge more than counts), with lines at thresholds.

    Adjacent histograms of one group are drawn small, side by side, under its name.
    """
    panel = {"type": "histogram", "title": title, "edges": list(edges), "counts": list(counts)}
    return {**panel, "thresholds": list(thresholds), "group": group}


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Number | None]]
) -> Panel:
    """Draw a table; numbers are aligned right, and one that is missing (None) is a dash."""
    cells = [list(row) for row in rows]
    return {"type": "table", "title": title, "columns": list(columns), "rows": cells}


def samples(title: str, items: Sequence[Mapping[str, str]]) -> Panel:
    """Draw texts side by side: one card per item, one column per key (prompt, before, after…)."""
    return {"type": "samples", "title": title, "items": [dict(item) for item in items]}


def browser(title: str, items: Sequence[Mapping[str, str]]) -> Panel:
    """Draw a searchable list: `text` is the long field of an item, the other ones are labels."""
    return {"type": "browser", "title": title, "items": [dict(item) for item in items]}
