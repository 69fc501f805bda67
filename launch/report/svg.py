"""SVG primitives of all charts: elements, escaping, axes and ticks.

Charts are written by hand because a report is one file under a content security policy that forbids
scripts and external resources: plotting libraries emit JavaScript or images of fixed resolution.
The same data gives the same text, everything is escaped, and colours come from the classes of
`STYLE`, so that a chart follows the light or dark theme of its page.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence

from launch.ui.formatting import number
from pipeline.redaction import escape_control_characters

WIDTH, HEIGHT = 520, 222  # units of a drawing, which scales to its container
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 28, 38  # margins around the plot area
NUM_COLOURS = 6
LABEL_MARGIN = 16  # half the width of a wide number, which must not be cut off at the right end
DECADE_TICKS = (1, 1.5, 2, 3, 4, 5, 7)  # ticks of a logarithmic axis over one decade
SMALLEST, LARGEST = 1e-290, 1e300  # beyond them the arithmetic of an axis under- or overflows
RESOLUTION = 1e-9  # of an interval, relative to its ends; a smaller one is a single value

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


def svg(elements: Iterable[str], height: float = HEIGHT, width: float = WIDTH) -> str:
    """Return a drawing of the elements."""
    body = "".join(elements)
    return f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img">{body}</svg>'


def standalone(drawing: str) -> str:
    """Return a drawing as a file of its own, with the style sheet."""
    head, _, rest = drawing.partition(">")
    background = '<rect width="100%" height="100%" style="fill:var(--card)"/>'
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{STYLE}</style>{background}{rest}'


def escape_text(text: str) -> str:
    """Replace control and bidirectional characters by visible codes; line breaks are kept."""
    return "\n".join(escape_control_characters(line) for line in text.split("\n"))


def escape_html(text: str) -> str:
    """Escape text for HTML and SVG."""
    return html.escape(escape_text(text))


def text(x: float, y: float, words: str, style: str = "") -> str:
    """Return a line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{escape_html(words)}</text>'


def rect(x: float, y: float, w: float, h: float, style: str, title: str) -> str:
    """Return a rectangle with a tooltip."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(w, 0):.1f}" height="{h:.1f}" rx="2" '
        f'class="{style}"><title>{escape_html(title)}</title></rect>'
    )


def segment(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """Return a straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def drawable(value: object) -> bool:
    """Return whether a value is a number that an axis can show."""
    return isinstance(value, int | float) and abs(value) <= LARGEST


def shorten(text: str, length: int) -> str:
    """Cut text to at most `length` characters, at its end."""
    return text if len(text) <= length else text[: length - 1] + "…"


def shorten_start(text: str, length: int) -> str:
    """Cut text to at most `length` characters, at its start: the end of a rule's name is more
    informative."""
    return text if len(text) <= length else "…" + text[len(text) - length + 1 :]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers that enclose the interval."""
    if _is_single(low, high):
        pad = abs(low) * 0.1 if abs(low) > SMALLEST else 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _is_single(low: float, high: float) -> bool:
    """Return whether an interval is too small to be divided by ticks."""
    return high - low <= max(SMALLEST, RESOLUTION * max(abs(low), abs(high)))


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    parts = {0: DECADE_TICKS, 1: DECADE_TICKS, 2: (1, 2, 5)}.get(last - first, (1,))
    values = [m * 10.0**e for e in range(first, last + 1) for m in parts]
    inside = [v for v in values if low < v < high]
    below = max(v for v in values if v <= low)
    above = min((v for v in values if v >= high and v > below), default=below * 10)
    return [below, *inside, above]


class Axes:
    """Axes of a chart: map values to coordinates and draw the grid."""

    width, height = float(WIDTH), float(HEIGHT)
    format_x: Callable[[float], str] = staticmethod(number)
    """Formats the ticks of the horizontal axis."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], log: bool) -> None:
        self.log = log and min(ys) > SMALLEST
        self.log_x = False
        self.set_range_x(min(xs), max(max(xs), min(xs) + 1))
        self.y_ticks = (_log_ticks if self.log else ticks)(min(ys), max(ys))
        self.low_y, self.high_y = self._scale(self.y_ticks[0]), self._scale(self.y_ticks[-1])

    def set_range_x(self, low: float, high: float) -> None:
        """Set the ends of the horizontal axis; a single value gets some space."""
        self.low_x = low
        self.high_x = low + max(1.0, abs(low)) if _is_single(low, high) else high

    def _scale(self, y: float) -> float:
        return math.log10(y) if self.log else y

    def x(self, value: float) -> float:
        """Return the horizontal coordinate of a value."""
        low, high = self.low_x, self.high_x
        if self.log_x:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return LEFT + (value - low) / (high - low) * (self.width - LEFT - RIGHT)

    def value_at(self, x: float) -> float:
        """Return the value at a horizontal coordinate."""
        part = (x - LEFT) / (self.width - LEFT - RIGHT)
        if self.log_x:
            return self.low_x * math.exp(part * math.log(self.high_x / self.low_x))
        return self.low_x + part * (self.high_x - self.low_x)

    def y(self, value: float) -> float:
        """Return the vertical coordinate of a value, from the top."""
        part = (self._scale(value) - self.low_y) / (self.high_y - self.low_y)
        return self.height - BOTTOM - part * (self.height - TOP - BOTTOM)

    def grid(self) -> list[str]:
        """Return the grid lines and tick labels of both axes."""
        elements = []
        for tick in self.y_ticks:
            y = self.y(tick)
            elements.append(segment(LEFT, y, self.width - RIGHT, y, "rule"))
            elements.append(text(LEFT - 7, y + 4, number(tick), "end"))
        ends = self.low_x, self.high_x
        for tick in _log_ticks(*ends) if self.log_x else ticks(*ends, 6):
            if self.low_x <= tick <= self.high_x:
                x = self.x(tick)
                anchor = "mid" if x < self.width - RIGHT - LABEL_MARGIN else "end"
                x = x if anchor == "mid" else min(x + LABEL_MARGIN, self.width - RIGHT)
                elements.append(text(x, self.height - BOTTOM + 17, self.format_x(tick), anchor))
        return elements
