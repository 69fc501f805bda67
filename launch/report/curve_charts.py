"""Line charts: metrics of a stage by step, and one metric of several trainings by cost."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, dropwhile, pairwise
from typing import Any

from launch.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    NUM_COLOURS,
    RIGHT,
    SMALLEST,
    TOP,
    WIDTH,
    Axes,
    drawable,
    rect,
    svg,
    text,
)
from launch.ui.formatting import number
from pipeline.panels import Panel

WIDE = (1120.0, 300.0)  # width and height of a wide chart
MAX_RAW_LINES = 3  # lines whose noise is shown; more of it would hide the smoothed lines
MAX_BUCKETS = 280  # a drawn line has at most two points per bucket: its minimum and its maximum
MIN_SMOOTHED = 60  # points; a noisy line with more gets a smoothed line on top
NUM_HOVER_BANDS = 90  # tooltips along a chart

Point = tuple[float, float]


def draw_panel_curves(panel: Panel, series: Sequence[Mapping[str, Any]]) -> str:
    """Draw a curve panel: its keys by step; empty if the series has none of them."""
    lines = {key: found for key in panel["keys"] if (found := _drawable(points_of(series, key)))}
    if not lines:
        return ""
    xs = [x for line in lines.values() for x, _ in line]
    ys = [y for line in lines.values() for _, y in line]
    axes = Axes(xs, ys, panel["log_y"])
    elements = axes.grid()
    left = float(LEFT)
    for index, (key, line) in enumerate(lines.items()):
        colour = index % NUM_COLOURS
        noisy = is_noisy(line)
        elements.append(polyline(axes, decimate(line), f"ln s{colour}{' raw' if noisy else ''}"))
        if noisy:
            elements.append(polyline(axes, decimate(smooth(line)), f"ln s{colour}"))
        if len(line) == 1:
            elements.append(_dot(axes, line[0], f"f{colour}"))
        label = f"{key} {number(line[-1][1])}"
        elements.append(rect(left, 9, 14, 4, f"f{colour}", key))
        elements.append(text(left + 19, 14.5, label, "strong"))
        left += 34 + 6.4 * len(label)
    unit = f"step · {panel['unit']}" if panel["unit"] else "step"
    elements.append(text(WIDTH - RIGHT, HEIGHT - 3, unit, "end"))
    return svg([*elements, *_step_tooltips(axes, lines)])


def draw_curves(
    curves: Mapping[str, Sequence[Point]],
    x_label: str,
    *,
    format_x: Callable[[float], str] = number,
    log: bool = False,
    wide: bool = False,
) -> str:
    """Draw several curves over one axis; empty if there are no points. The page has the legend.

    Args:
        curves: points by name, in the order of their colours; an empty curve keeps its colour.
        x_label: label of the horizontal axis.
        format_x: formats its ticks.
        log: use logarithmic axes if all values are positive. Linear axes cut off the steep
            decrease of an untrained model, which would compress the rest.
        wide: use twice the usual width.
    """
    curves = {name: _drawable(curve) for name, curve in curves.items()}
    xs = [x for curve in curves.values() for x, _ in curve]
    if not xs:
        return ""
    log = log and min(xs) > SMALLEST
    visible = [curve if log else curve[len(curve) // 20 :] for curve in curves.values()]
    axes = Axes(xs, [y for curve in visible for _, y in curve], log=log)
    axes.set_range_x(min(xs) if log else min(0.0, *xs), max(xs))
    axes.log_x, axes.format_x = log, format_x
    axes.width, axes.height = WIDE if wide else (WIDTH, HEIGHT)
    elements = axes.grid()
    for index, curve in enumerate(curves.values()):
        elements += _curve_elements(axes, curve, index, raw=len(curves) <= MAX_RAW_LINES)
    elements.append(text(axes.width - RIGHT, axes.height - 3, x_label, "end"))
    tooltips = _value_tooltips(axes, curves, x_label)
    return svg([*elements, *tooltips], axes.height, axes.width)


def _curve_elements(axes: Axes, curve: Sequence[Point], index: int, *, raw: bool) -> Iterator[str]:
    """Yield one curve: a smoothed line, over its points where they are noisy."""
    low, high = axes.y_ticks[0], axes.y_ticks[-1]

    def clamp(points: Iterable[Point]) -> list[Point]:
        return [(x, max(low, min(y, high))) for x, y in points]

    def clip(points: Sequence[Point]) -> list[Point]:
        return clamp(dropwhile(lambda point: point[1] > high, decimate(points)))

    if raw and is_noisy(curve):
        yield polyline(axes, clip(curve), f"ln s{index % NUM_COLOURS} raw")
    yield polyline(axes, clip(smooth(curve)), f"ln {curve_class('s', index)}")
    if len(curve) == 1:
        yield _dot(axes, clamp(curve)[0], curve_class("f", index))


def curve_class(kind: str, index: int) -> str:
    """Return the classes of a curve's stroke (`s`) or fill (`f`): a colour, then a dash pattern."""
    dashes = f" d{index // NUM_COLOURS % 3}" if kind == "s" else ""
    return f"{kind}{index % NUM_COLOURS}{dashes}"


def polyline(axes: Axes, points: Iterable[Point], style: str) -> str:
    """Return a line through points."""
    coordinates = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in points)
    return f'<polyline points="{coordinates}" class="{style}"/>'


def _dot(axes: Axes, point: Point, style: str) -> str:
    x, y = axes.x(point[0]), axes.y(point[1])
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="{style}"/>'


def _step_tooltips(axes: Axes, lines: Mapping[str, Sequence[Point]]) -> list[str]:
    """Return invisible bands with the values at a step."""
    values = {key: dict(line) for key, line in lines.items()}
    steps = sorted({x for line in lines.values() for x, _ in line})
    steps = steps[:: math.ceil(len(steps) / NUM_HOVER_BANDS)]
    width = (WIDTH - LEFT - RIGHT) / max(len(steps), 2)
    bands = []
    for step in steps:
        rows = [f"{key} {number(found[step])}" for key, found in values.items() if step in found]
        title = "\n".join([f"step {number(step)}", *rows])
        left = axes.x(step) - width / 2
        bands.append(rect(left, TOP, width, HEIGHT - TOP - BOTTOM, "hover", title))
    return bands


def _value_tooltips(
    axes: Axes, curves: Mapping[str, Sequence[Point]], x_label: str
) -> Iterator[str]:
    """Yield invisible bands with each curve's value at their centre."""
    width = (axes.width - LEFT - RIGHT) / NUM_HOVER_BANDS
    smoothed = {name: smooth(curve) for name, curve in curves.items()}
    for band in range(NUM_HOVER_BANDS):
        left = LEFT + band * width
        x = axes.value_at(left + width / 2)
        values = {name: interpolate(curve, x) for name, curve in smoothed.items()}
        rows = [f"{name} {number(value)}" for name, value in values.items() if value is not None]
        if rows:
            title = "\n".join([f"{axes.format_x(x)} {x_label}", *rows])
            yield rect(left, TOP, width, axes.height - TOP - BOTTOM, "hover", title)


def points_of(series: Iterable[Mapping[str, Any]], key: str) -> list[Point]:
    """Return the finite values of a key by step; of a repeated step, the newest value."""
    found = {row["step"]: row[key] for row in series if row.get(key) is not None}
    return sorted(found.items())


def _drawable(points: Iterable[Point]) -> list[Point]:
    return [point for point in points if drawable(point[0]) and drawable(point[1])]


def is_noisy(line: Sequence[Point]) -> bool:
    """Return whether a line is long and changes its direction often."""
    slopes = [b[1] - a[1] for a, b in pairwise(line)]
    turns = sum(a * b < 0 for a, b in pairwise(slopes))
    return len(line) > MIN_SMOOTHED and turns > len(line) / 8


def decimate(line: Sequence[Point]) -> list[Point]:
    """Return the minimum and the maximum of each bucket, so that no spike is lost."""
    if len(line) <= 2 * MAX_BUCKETS:
        return list(line)
    size = math.ceil(len(line) / MAX_BUCKETS)
    kept = []
    for start in range(0, len(line), size):
        bucket = line[start : start + size]
        kept += sorted({min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])})
    return kept


def smooth(line: Sequence[Point]) -> list[Point]:
    """Return the running mean of a noisy line over a twentieth of it, and over less at its start,
    where it is steep; a line that is not noisy is returned as it is."""
    if not is_noisy(line):
        return list(line)
    sums = [0.0, *accumulate(y for _, y in line)]
    mean = []
    for i, (x, _) in enumerate(line):
        reach = min(len(line) // 40, i // 8)
        first, end = i - reach, min(i + reach + 1, len(line))
        mean.append((x, (sums[end] - sums[first]) / (end - first)))
    return mean


def smoothed_value_at(line: Sequence[Point], x: float) -> float | None:
    """Return the mean of a line over the last twentieth before `x`, so that no single step decides;
    None if the line ends before `x`."""
    value = interpolate(line, x)
    if value is None:
        return None
    recent = [y for place, y in line if 0.95 * x <= place <= x]
    return sum(recent) / len(recent) if recent else value


def interpolate(line: Sequence[Point], x: float) -> float | None:
    """Return the value of a line at `x`, linear between points; None beyond its ends."""
    i = bisect_left(line, x, key=lambda point: point[0])
    if i == len(line) or (i == 0 and line[0][0] != x):
        return None
    if line[i][0] == x:
        return line[i][1]
    (x1, y1), (x2, y2) = line[i - 1], line[i]
    return y1 + (y2 - y1) * (x - x1) / (x2 - x1)
