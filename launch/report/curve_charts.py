"""Draws lines of several owners in one picture: losses of runs against what they cost.

The owners' colours are those of the page around it (`colour`), so there is no legend inside.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, dropwhile

from launch.report.charts import (
    BOTTOM,
    COLOURS,
    HEIGHT,
    HOVERS,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axes,
    Point,
    noisy,
    path,
    rect,
    svg,
    text,
    thin,
)
from launch.ui.formatting import number

WIDE = (1120.0, 300.0)
FEW = 3  # lines that are shown with their noise: more of it would hide them


def lines(
    found: Mapping[str, Sequence[Point]],
    x: str,
    *,
    say_x: Callable[[float], str] = number,
    log: bool = False,
    wide: bool = False,
) -> str:
    """Lines of several owners over one axis; empty if there is nothing to draw.

    Args:
        found: by owner, in the order of their colours; one without points keeps its place.
        x: what the axis is of.
        say_x: writes its numbers.
        log: over logarithmic axes, if all is positive. Over linear ones the fall of an untrained
            model is cut off at the top, for it would press all the rest together.
        wide: for a place of twice the usual width.
    """
    places = [place for line in found.values() for place, _ in line]
    if not places:
        return ""
    log = log and min(places) > 0
    axes = Axes(places, _shown(found.values(), whole=log), log=log)
    axes.low_x = min(places) if log else min(0.0, *places)
    axes.high_x = max(places) if max(places) > axes.low_x else axes.low_x + 1
    axes.log_x, axes.say_x = log, say_x
    axes.width, axes.height = WIDE if wide else (WIDTH, HEIGHT)
    body = axes.grid()
    for index, line in enumerate(found.values()):
        body += _trajectory(axes, line, index, raw=len(found) <= FEW)
    body.append(text(axes.width - RIGHT, axes.height - 3, x, "end"))
    return svg([*body, *_readings(axes, found, x)], axes.height, axes.width)


def _trajectory(axes: Axes, line: Sequence[Point], index: int, *, raw: bool) -> Iterator[str]:
    """One owner's line: a smooth one over its points where they are noisy."""
    low, high = axes.marks[0], axes.marks[-1]

    def held(points: Sequence[Point]) -> list[Point]:
        inside = dropwhile(lambda point: point[1] > high, thin(points))
        return [(place, max(low, min(value, high))) for place, value in inside]

    if raw and noisy(line):
        yield path(axes, held(line), f"ln s{index % COLOURS} raw")
    yield path(axes, held(steady(line)), f"ln {colour('s', index)}")
    if len(line) == 1:
        ((x, y),) = held(line)
        place = f'cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}"'
        yield f'<circle {place} r="3" class="{colour("f", index)}"/>'


def colour(kind: str, index: int) -> str:
    """The classes of the index-th owner's strokes (`s`) or areas (`f`): colours, then dashes."""
    dashes = f" d{index // COLOURS % 3}" if kind == "s" else ""
    return f"{kind}{index % COLOURS}{dashes}"


def _shown(found: Iterable[Sequence[Point]], *, whole: bool) -> list[float]:
    """The values that an axis must show: those after the first twentieth of each line, or all."""
    parts = [line if whole else line[len(line) // 20 :] for line in found]
    return [value for part in parts for _, value in part]


def _readings(axes: Axes, found: Mapping[str, Sequence[Point]], x: str) -> Iterator[str]:
    """Invisible bands that say each line's value at their middle."""
    width = (axes.width - LEFT - RIGHT) / HOVERS
    shown = {name: steady(line) for name, line in found.items()}
    for band in range(HOVERS):
        left = LEFT + band * width
        place = axes.place(left + width / 2)
        values = {name: value_at(line, place) for name, line in shown.items()}
        said = [f"{name} {number(value)}" for name, value in values.items() if value is not None]
        if said:
            title = "\n".join([f"{axes.say_x(place)} {x}", *said])
            yield rect(left, TOP, width, axes.height - TOP - BOTTOM, "hover", title)


def steady(line: Sequence[Point]) -> list[Point]:
    """A line without its noise, if it has much: a running mean over a twentieth of it, and over
    less at its beginning, where it is steep."""
    if not noisy(line):
        return list(line)
    sums = [0.0, *accumulate(y for _, y in line)]
    mean = []
    for at, (x, _) in enumerate(line):
        reach = min(len(line) // 40, at // 8)
        first, end = at - reach, min(at + reach + 1, len(line))
        mean.append((x, (sums[end] - sums[first]) / (end - first)))
    return mean


def lately(line: Sequence[Point], place: float) -> float | None:
    """The mean of a line over the last twentieth of the way to a place, so that no single step
    decides; None if the line does not come so far."""
    value = value_at(line, place)
    if value is None:
        return None
    recent = [y for x, y in line if 0.95 * place <= x <= place]
    return sum(recent) / len(recent) if recent else value


def value_at(line: Sequence[Point], place: float) -> float | None:
    """A line's value between two of its points; None beyond its ends."""
    at = bisect_left(line, place, key=lambda point: point[0])
    if at == len(line) or (at == 0 and line[0][0] != place):
        return None
    if line[at][0] == place:
        return line[at][1]
    (x1, y1), (x2, y2) = line[at - 1], line[at]
    return y1 + (y2 - y1) * (place - x1) / (x2 - x1)
