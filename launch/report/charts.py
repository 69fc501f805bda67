"""Draws panels (see `panels`) as SVG: crisp at any size, light and dark, values on hover.

Pure functions of plain data, the same text for the same data, everything escaped. A drawing
has no colours of its own but classes, which the report's style sheet gives; `standalone` adds
the sheet, for readers that show one drawing alone.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from launch.ui.formatting import number
from pipeline.atomic_io import read_json
from pipeline.panels import Panel
from pipeline.redaction import escape_control_characters

WIDTH = 520  # units of a drawing, which scales to its place
HEIGHT = 222
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 28, 38  # margins around what is plotted
ROW = 27  # height of one bar with its gap
LABELS, WIDEST_LABELS = 150, 250  # width left of horizontal bars
CHARACTER = 7.0  # width of one, about
BUCKETS = 280  # a line has at most two points a bucket: its lowest and its highest
SMOOTH = 60  # points from which a line gets a smoothed one over it
HOVERS = 90  # places of a curve that say their values

Point = tuple[float, float]

STYLE = """
:root { color-scheme: light dark; --ink:#1c2530; --soft:#5d6b7a; --line:#e3e8ee; --card:#fff;
  --c0:#0b7285; --c1:#d9480f; --c2:#5f3dc4; --c3:#2b8a3e; --c4:#c2255c; --c5:#a07900;
  --good:#2b8a3e; --bad:#c92a2a; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6edf3; --soft:#97a3b0; --line:#2c3642;
  --card:#161c24; --c0:#3bc9db; --c1:#ff922b; --c2:#b197fc; --c3:#69db7c; --c4:#f783ac;
  --c5:#ffd43b; --good:#69db7c; --bad:#ff8787; } }
.chart { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; width: 100%; height: auto;
  display: block; font-variant-numeric: tabular-nums; }
.chart text { fill: var(--soft); } .chart .strong { fill: var(--ink); font-weight: 600; }
.chart .rule { stroke: var(--line); } .chart .zero { stroke: var(--soft); opacity: .6; }
.chart .end { text-anchor: end; } .chart .mid { text-anchor: middle; }
.chart .ln { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.chart .raw { stroke-width: 1; opacity: .32; } .chart .mark { stroke-dasharray: 4 3; }
.chart .hover { fill: var(--ink); opacity: 0; } .chart .hover:hover { opacity: .08; }
.chart .bar { opacity: .88; } .chart .bar:hover { opacity: 1; }
.s0{stroke:var(--c0)} .s1{stroke:var(--c1)} .s2{stroke:var(--c2)} .s3{stroke:var(--c3)}
.s4{stroke:var(--c4)} .s5{stroke:var(--c5)} .sbad{stroke:var(--bad)}
.d1{stroke-dasharray:7 4} .d2{stroke-dasharray:2 4}
.f0{fill:var(--c0)} .f1{fill:var(--c1)} .f2{fill:var(--c2)} .f3{fill:var(--c3)}
.f4{fill:var(--c4)} .f5{fill:var(--c5)} .fbad{fill:var(--bad)} .fgood{fill:var(--good)}
"""
COLOURS = 6
EDGE = 16  # half of a wide number: nearer to the right end it would be cut off
FINE = (1, 1.5, 2, 3, 4, 5, 7)  # marks of a logarithmic axis over one decade
WIDE = 100  # bins that span more than this are drawn over a logarithmic axis


def panels(observed: Path) -> list[Panel]:
    """The panels that a stage left; none if the file is missing or damaged."""
    found: list[Panel] = read_json(observed / "panels.json", [])
    return [panel for panel in found if isinstance(panel, dict) and "title" in panel]


def grid(panel: Panel) -> dict[str, Any] | None:
    """A table or texts as {columns, data}; None for what is drawn."""
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
    """The drawing of a panel; empty if its type is not drawn or it holds nothing.

    Args:
        panel: see `pipeline.panels`.
        series: the stage's points {"step", "time", …}, which curves take their values from.
    """
    match panel["type"]:
        case "waterfall":
            return _waterfall(panel["steps"], panel["unit"])
        case "curve":
            return _curve(panel, series)
        case "bars":
            return _bars(panel["values"], panel["unit"])
        case "histogram":
            return _histogram(panel["edges"], panel["counts"], panel["thresholds"])
    return ""


def standalone(drawing: str) -> str:
    """A drawing as a file of its own."""
    head, _, rest = drawing.partition(">")
    paper = '<rect width="100%" height="100%" style="fill:var(--card)"/>'
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{STYLE}</style>{paper}{rest}'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from at most `low` to at least `high`."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def svg(body: Iterable[str], height: float = HEIGHT, width: float = WIDTH) -> str:
    """A drawing of these elements."""
    inside = "".join(body)
    return f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img">{inside}</svg>'


def visible(words: str) -> str:
    """Text in which nothing hides: control characters and bidi marks as codes; lines stay."""
    return "\n".join(escape_control_characters(line) for line in words.split("\n"))


def safe(words: str) -> str:
    """Text that is only text, in HTML and in SVG."""
    return html.escape(visible(words))


def text(x: float, y: float, words: str, style: str = "") -> str:
    """One line of text, escaped."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{safe(words)}</text>'


def rect(x: float, y: float, w: float, h: float, style: str, title: str) -> str:
    """A rectangle that says its title."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(w, 0):.1f}" height="{h:.1f}" rx="2" '
        f'class="{style}"><title>{safe(title)}</title></rect>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def short(words: str, length: int) -> str:
    """At most `length` characters."""
    return words if len(words) <= length else words[: length - 1] + "…"


def tail(words: str, length: int) -> str:
    """At most `length` characters: the end, which says more of a rule's name."""
    return words if len(words) <= length else "…" + words[len(words) - length + 1 :]


# --- curves ------------------------------------------------------------------------------------


class Axes:
    """Maps values to places; draws the grid."""

    width, height = float(WIDTH), float(HEIGHT)
    say_x: Callable[[float], str] = staticmethod(number)
    """Writes the numbers of the horizontal axis."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], log: bool) -> None:
        self.log = log and min(ys) > 0
        self.log_x = False
        self.low_x, self.high_x = min(xs), max(max(xs), min(xs) + 1)
        if self.log:
            self.marks = _decades(min(ys), max(ys))
        else:
            self.marks = ticks(min(ys), max(ys))
        self.low_y, self.high_y = self._scale(self.marks[0]), self._scale(self.marks[-1])

    def _scale(self, y: float) -> float:
        return math.log10(y) if self.log else y

    def x(self, value: float) -> float:
        """The place of a value across."""
        low, high = self.low_x, self.high_x
        if self.log_x:
            low, high, value = math.log(low), math.log(high), math.log(value)
        part = (value - low) / (high - low)
        return LEFT + part * (self.width - LEFT - RIGHT)

    def place(self, x: float) -> float:
        """The value whose place is `x`."""
        part = (x - LEFT) / (self.width - LEFT - RIGHT)
        if self.log_x:
            return self.low_x * math.exp(part * math.log(self.high_x / self.low_x))
        return self.low_x + part * (self.high_x - self.low_x)

    def y(self, value: float) -> float:
        """The place of a value, from above."""
        part = (self._scale(value) - self.low_y) / (self.high_y - self.low_y)
        return self.height - BOTTOM - part * (self.height - TOP - BOTTOM)

    def grid(self) -> list[str]:
        """Lines at the marks of both axes, and what they stand for."""
        body = []
        for mark in self.marks:
            body.append(_line(LEFT, self.y(mark), self.width - RIGHT, self.y(mark), "rule"))
            body.append(text(LEFT - 7, self.y(mark) + 4, number(mark), "end"))
        x_ends = self.low_x, self.high_x
        for mark in _decades(*x_ends) if self.log_x else ticks(*x_ends, 6):
            if self.low_x <= mark <= self.high_x:
                x = self.x(mark)
                side = "mid" if x < self.width - RIGHT - EDGE else "end"
                x = x if side == "mid" else min(x + EDGE, self.width - RIGHT)
                body.append(text(x, self.height - BOTTOM + 17, self.say_x(mark), side))
        return body


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    parts = {0: FINE, 1: FINE, 2: (1, 2, 5)}.get(last - first, (1,))
    marks = [m * 10.0**e for e in range(first, last + 1) for m in parts]
    inside = [m for m in marks if low < m < high]
    below = max(m for m in marks if m <= low)
    return [below, *inside, min((m for m in marks if m >= high and m > below), default=below * 10)]


def _curve(panel: Panel, series: Sequence[Mapping[str, Any]]) -> str:
    lines = {key: found for key in panel["keys"] if (found := line_of(series, key))}
    if not lines:
        return ""
    xs = [x for line in lines.values() for x, _ in line]
    ys = [y for line in lines.values() for _, y in line]
    axes = Axes(xs, ys, panel["log_y"])
    body = axes.grid()
    at = float(LEFT)
    for index, (key, line) in enumerate(lines.items()):
        colour = index % COLOURS
        smooth = noisy(line)
        body.append(path(axes, thin(line), f"ln s{colour}{' raw' if smooth else ''}"))
        if smooth:
            body.append(path(axes, thin(smoothed(line)), f"ln s{colour}"))
        if len(line) == 1:
            x, y = axes.x(line[0][0]), axes.y(line[0][1])
            body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="f{colour}"/>')
        body.append(rect(at, 9, 14, 4, f"f{colour}", key))
        label = f"{key} {number(line[-1][1])}"
        body.append(text(at + 19, 14.5, label, "strong"))
        at += 34 + 6.4 * len(label)
    unit = f"step · {panel['unit']}" if panel["unit"] else "step"
    body.append(text(WIDTH - RIGHT, HEIGHT - 3, unit, "end"))
    return svg([*body, *_hovers(axes, lines)])


def line_of(series: Iterable[Mapping[str, Any]], key: str) -> list[Point]:
    """The finite points of one key, by step; of a step that was made again, the newest."""
    found: dict[float, float] = {}
    for row in series:
        value, step = row.get(key), row.get("step")
        if isinstance(value, int | float) and isinstance(step, int | float):  # "nan" is text
            found[step] = float(value)
    return sorted(found.items())


def noisy(line: Sequence[Point]) -> bool:
    """Whether a line is long and turns often, so that its course is hard to see."""
    slopes = [b[1] - a[1] for a, b in pairwise(line)]
    turns = sum(a * b < 0 for a, b in pairwise(slopes))
    return len(line) > SMOOTH and turns > len(line) / 8


def thin(line: Sequence[Point]) -> list[Point]:
    """At most two points a bucket, its lowest and its highest, so that no spike is lost."""
    if len(line) <= 2 * BUCKETS:
        return list(line)
    size = math.ceil(len(line) / BUCKETS)
    kept = []
    for start in range(0, len(line), size):
        bucket = line[start : start + size]
        ends = {min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def smoothed(line: Sequence[Point]) -> list[Point]:
    """A running mean over a twentieth of the line, centred."""
    sums = [0.0]
    for _, y in line:
        sums.append(sums[-1] + y)
    half = max(1, len(line) // 40)
    result = []
    for i, (x, _) in enumerate(line):
        reach = min(half, i, len(line) - 1 - i)
        result.append((x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return result


def path(axes: Axes, line: Iterable[Point], style: str) -> str:
    """A line through these points."""
    places = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in line)
    return f'<polyline points="{places}" class="{style}"/>'


def _hovers(axes: Axes, lines: Mapping[str, Sequence[Point]]) -> list[str]:
    """Invisible bands that say the values under them."""
    values = {key: dict(line) for key, line in lines.items()}
    steps = sorted({x for line in lines.values() for x, _ in line})
    steps = steps[:: math.ceil(len(steps) / HOVERS)]
    width = (WIDTH - LEFT - RIGHT) / max(len(steps), 2)
    bands = []
    for step in steps:
        said = [f"{key} {number(found[step])}" for key, found in values.items() if step in found]
        title = "\n".join([f"step {number(step)}", *said])
        left = axes.x(step) - width / 2
        bands.append(rect(left, TOP, width, HEIGHT - TOP - BOTTOM, "hover", title))
    return bands


# --- bars --------------------------------------------------------------------------------------


def _waterfall(steps: Sequence[Sequence[Any]], unit: str) -> str:
    if not steps:
        return ""
    total = max((abs(float(value)) for _, value in steps), default=0.0) or 1.0
    longest = max(len(str(label)) for label, _ in steps)
    labels = min(WIDEST_LABELS, max(LABELS, CHARACTER * longest + 14))
    room = WIDTH - labels - 110
    body, left = [], 0.0
    for row, (label, value) in enumerate(steps):
        ends = row in (0, len(steps) - 1)
        low, high = (0.0, value) if ends else sorted((left, left + value))
        left = value if row == 0 else left + (0 if ends else value)
        style = "f0" if ends else ("fbad" if value < 0 else "fgood")
        x, width = labels + low / total * room, max((high - low) / total * room, 1.0)
        said = number(value).replace("-", "−")
        share = f"{abs(value) / total:.1%}"
        y = row * ROW + 4
        body.append(text(labels - 10, y + 13, tail(str(label), int(labels / CHARACTER) - 2), "end"))
        title = f"{label}: {value:,} {unit} ({share})"
        body.append(rect(x, y, width, ROW - 9, f"bar {style}", title))
        body.append(text(x + width + 7, y + 13, said, "strong"))
        body.append(text(WIDTH - 4, y + 13, share, "end"))
        if row < len(steps) - 1:
            edge = labels + left / total * room
            body.append(_line(edge, y + ROW - 9, edge, y + ROW, "zero"))
    return svg(body, len(steps) * ROW + 4)


def _bars(values: Mapping[str, float], unit: str) -> str:
    finite = {key: float(v) for key, v in values.items() if isinstance(v, int | float)}
    finite = {key: v for key, v in finite.items() if math.isfinite(v)}
    if not finite:
        return ""
    low, high = min(0.0, *finite.values()), max(0.0, *finite.values())
    room, span = WIDTH - LABELS - 90, (high - low) or 1.0
    start = LABELS + (60 if low < 0 else 0)
    room -= start - LABELS
    zero = start - low / span * room
    body = [_line(zero, 0, zero, len(finite) * ROW, "zero")]
    for row, (label, value) in enumerate(finite.items()):
        y, width = row * ROW + 4, abs(value) / span * room
        x = zero if value >= 0 else zero - width
        body.append(text(LABELS - 10, y + 13, short(label, 24), "end"))
        body.append(rect(x, y, width, ROW - 9, f"bar f{0 if value >= 0 else 1}", label))
        said = f"{number(value).replace('-', '−')} {unit}".strip()
        place, style = (x + width + 7, "strong") if value >= 0 else (x - 7, "strong end")
        body.append(text(place, y + 13, said, style))
    return svg(body, len(finite) * ROW + 4)


def _histogram(edges: Sequence[float], counts: Sequence[int], thresholds: Sequence[float]) -> str:
    if not counts or len(edges) != len(counts) + 1:
        return ""
    axes = Axes(edges, [0, *counts], log=False)
    axes.high_x = max(edges)  # bins are not steps: they may be narrower than 1
    axes.high_x = axes.high_x if axes.high_x > axes.low_x else axes.low_x + 1
    axes.log_x = 0 < WIDE * axes.low_x < axes.high_x
    body = axes.grid()
    for (low, high), count in zip(pairwise(edges), counts, strict=True):
        x, y = axes.x(low), axes.y(count)
        title = f"{number(low)} to {number(high)}: {count:,}"
        body.append(rect(x + 0.5, y, axes.x(high) - x - 1, axes.y(0) - y, "bar f0", title))
    for threshold in thresholds:
        if not axes.low_x <= threshold <= axes.high_x:
            continue
        x = axes.x(threshold)
        body.append(_line(x, TOP - 8, x, HEIGHT - BOTTOM, "sbad mark"))
        body.append(text(x + 5, TOP, f"threshold {number(threshold)}", ""))
    return svg(body)
