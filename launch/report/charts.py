"""Charts and tables of the panels that a stage left (see `pipeline.panels`), as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from launch.report.curve_charts import draw_panel_curves
from launch.report.svg import (
    BOTTOM,
    HEIGHT,
    SMALLEST,
    TOP,
    WIDTH,
    Axes,
    drawable,
    rect,
    segment,
    shorten,
    shorten_start,
    svg,
    text,
)
from launch.ui.formatting import DASH, number
from pipeline.atomic_io import read_json
from pipeline.panels import Panel
from pipeline.plain_data import to_plain

BAR_HEIGHT = 27  # height of a bar, including the gap below it
LABEL_WIDTH, MAX_LABEL_WIDTH = 150, 250  # width left of horizontal bars
CHARACTER_WIDTH = 7.0
LOG_SPAN = 100  # bins that span a larger factor get a logarithmic axis


def read_panels(observed: Path, secret_names: frozenset[str] = frozenset()) -> list[Panel]:
    """Return the panels of a stage; none if the file is missing or corrupt.

    Older files hold NaN tokens and secrets.
    """
    found: list[Panel] = to_plain(read_json(observed / "panels.json", []), secret_names)
    return [panel for panel in found if isinstance(panel, dict) and "title" in panel]


def table_of(panel: Panel) -> dict[str, Any] | None:
    """Return a table or samples as {columns, data}; None for a panel that is drawn."""
    if panel["type"] == "table":
        return {"columns": panel["columns"], "data": panel["rows"]}
    if panel["type"] in ("samples", "browser"):
        columns = list(dict.fromkeys(key for item in panel["items"] for key in item))
        return {
            "columns": columns,
            "data": [[item.get(key, "") for key in columns] for item in panel["items"]],
        }
    return None


def draw(panel: Panel, series: Sequence[Mapping[str, Any]] = ()) -> str:
    """Draw a panel; empty if its type is not drawn or it has no content.

    Args:
        panel: see `pipeline.panels`.
        series: points {"step", "time", …} of the stage, for curves.
    """
    match panel["type"]:
        case "waterfall":
            return _waterfall(panel["steps"], panel["unit"])
        case "curve":
            return draw_panel_curves(panel, series)
        case "bars":
            return _bars(panel["values"], panel["unit"])
        case "histogram":
            return _histogram(panel["edges"], panel["counts"], panel["thresholds"])
    return ""


def _waterfall(steps: Sequence[Sequence[Any]], unit: str) -> str:
    if not steps:
        return ""
    total = max((abs(value) for _, value in steps if drawable(value)), default=0.0)
    total = total if total > SMALLEST else 1.0
    longest = max(len(str(label)) for label, _ in steps)
    labels = min(MAX_LABEL_WIDTH, max(LABEL_WIDTH, CHARACTER_WIDTH * longest + 14))
    scale = (WIDTH - labels - 110) / total
    elements, left = [], 0.0
    for row, (label, known) in enumerate(steps):
        is_end = row in (0, len(steps) - 1)
        value = known if drawable(known) else 0.0
        low, high = (0.0, value) if is_end else sorted((left, left + value))
        left = value if row == 0 else left + (0 if is_end else value)
        style = "f0" if is_end else ("fbad" if value < 0 else "fgood")
        x, width = labels + low * scale, max((high - low) * scale, 1.0)
        y = row * BAR_HEIGHT + 4
        share = f"{abs(value) / total:.1%}" if drawable(known) else DASH
        name = shorten_start(str(label), int(labels / CHARACTER_WIDTH) - 2)
        elements.append(text(labels - 10, y + 13, name, "end"))
        amount = f"{known:,}" if drawable(known) else DASH
        title = f"{label}: {amount} {unit} ({share})"
        elements.append(rect(x, y, width, BAR_HEIGHT - 9, f"bar {style}", title))
        elements.append(text(x + width + 7, y + 13, number(known).replace("-", "−"), "strong"))
        elements.append(text(WIDTH - 4, y + 13, share, "end"))
        if row < len(steps) - 1:
            edge = labels + left * scale
            elements.append(segment(edge, y + BAR_HEIGHT - 9, edge, y + BAR_HEIGHT, "zero"))
    return svg(elements, len(steps) * BAR_HEIGHT + 4)


def _bars(values: Mapping[str, Any], unit: str) -> str:
    shown = {key: v if drawable(v) else 0.0 for key, v in values.items() if not isinstance(v, str)}
    if not shown:
        return ""
    low, high = min(0.0, *shown.values()), max(0.0, *shown.values())
    start = LABEL_WIDTH + (60 if low < 0 else 0)
    scale = (WIDTH - start - 90) / (high - low if high - low > SMALLEST else 1.0)
    zero = start - low * scale
    elements = [segment(zero, 0, zero, len(shown) * BAR_HEIGHT, "zero")]
    for row, (label, value) in enumerate(shown.items()):
        y, width = row * BAR_HEIGHT + 4, abs(value) * scale
        x = zero if value >= 0 else zero - width
        elements.append(text(LABEL_WIDTH - 10, y + 13, shorten(label, 24), "end"))
        style = f"bar f{0 if value >= 0 else 1}"
        elements.append(rect(x, y, width, BAR_HEIGHT - 9, style, label))
        amount = f"{number(values[label]).replace('-', '−')} {unit}".strip()
        at, style = (x + width + 7, "strong") if value >= 0 else (x - 7, "strong end")
        elements.append(text(at, y + 13, amount, style))
    return svg(elements, len(shown) * BAR_HEIGHT + 4)


def _histogram(edges: Sequence[float], counts: Sequence[int], thresholds: Sequence[float]) -> str:
    if not counts or len(edges) != len(counts) + 1 or not all(map(drawable, [*edges, *counts])):
        return ""
    axes = Axes(edges, [0, *counts], log=False)
    axes.set_range_x(min(edges), max(edges))  # unlike steps, bins may be narrower than 1
    axes.log_x = axes.low_x > SMALLEST and LOG_SPAN * axes.low_x < axes.high_x
    elements = axes.grid()
    for (low, high), count in zip(pairwise(edges), counts, strict=True):
        x, y = axes.x(low), axes.y(count)
        title = f"{number(low)} to {number(high)}: {count:,}"
        elements.append(rect(x + 0.5, y, axes.x(high) - x - 1, axes.y(0) - y, "bar f0", title))
    for threshold in filter(drawable, thresholds):
        if axes.low_x <= threshold <= axes.high_x:
            x = axes.x(threshold)
            elements.append(segment(x, TOP - 8, x, HEIGHT - BOTTOM, "sbad mark"))
            elements.append(text(x + 5, TOP, f"threshold {number(threshold)}", ""))
    return svg(elements)
