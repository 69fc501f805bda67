"""Writes trainings side by side as one page: a single HTML file that needs no network.

Their metric against what they spent, a drawing an axis; a table of what they came to; and in
which parameters they differ. As the page of a run, it is made from the store alone and can be
written again at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.report import charts
from launch.report.curve_charts import colour, lines
from launch.report.run_page import template
from launch.report.training_curves import Training, differences, figures, meeting, spell
from launch.ui import formatting
from pipeline.atomic_io import write_atomic
from pipeline.redaction import redact

TITLES = {"tokens": "tokens", "flops": "FLOPs", "seconds": "time", "step": "steps"}
CLOCKS = ((2 * 86400.0, 86400.0, "days"), (2 * 3600.0, 3600.0, "hours"), (180.0, 60.0, "minutes"))


def write(path: Path, groups: Sequence[Sequence[Training]], axes: Sequence[str]) -> None:
    """Write the page.

    Raises:
        Failure: the disk refuses.
    """
    write_atomic(path, render(groups, axes), durable=False)


def render(groups: Sequence[Sequence[Training]], axes: Sequence[str]) -> str:
    """The page as text; a group that has none of the axes is shown by steps."""
    from markupsafe import Markup

    everyone = [one for group in groups for one in group]
    text = template("compare.html.j2").render(
        metric=everyone[0].metric,
        runs=len({one.run.id for one in everyone}),
        groups=[_group(group, axes) for group in groups],
        style=Markup(charts.STYLE),  # noqa: S704
    )
    return redact(text, {name for one in everyone for name in one.run.secrets()})


def _group(group: Sequence[Training], axes: Sequence[str]) -> dict[str, Any]:
    known = [axis for axis in dict.fromkeys(axes) if any(one.over(axis) for one in group)]
    known = known or ["step"]
    odd = len(known) % 2 == 1  # then the first has a row to itself
    drawn = [_drawing(group, axis, wide=odd and not at) for at, axis in enumerate(known)]
    return {
        "uses": ", ".join(dict.fromkeys(one.stage.uses for one in group)),
        "lines": [_row(index, one) for index, one in enumerate(group)],
        "figures": figures(group),
        "drawings": drawn,
        "differences": differences(group),
    }


def _row(index: int, one: Training) -> dict[str, Any]:
    return {
        "name": one.name,
        "run": one.run.id,
        "same": one.same,
        "stage": one.stage.name,
        "state": one.stage.state,
        "colour": colour("s", index),
    }


def _drawing(found: Sequence[Training], axis: str, *, wide: bool) -> dict[str, Any]:
    """The metric over an axis."""
    from markupsafe import Markup

    over = {one.name: one.over(axis) for one in found}
    unit, scale, say = _unit(axis, max(line[-1][0] for line in over.values() if line))
    scaled = {name: [(x / scale, y) for x, y in line] for name, line in over.items()}
    drawing = lines(scaled, unit, say_x=say, log=axis == "flops", wide=wide)
    return {
        "title": f"{found[0].metric} against {TITLES[axis]}",
        "wide": wide,
        "drawing": Markup(drawing),  # noqa: S704
        "met": list(_met(found, axis)),
        "without": [name for name, line in over.items() if not line],
    }


def _unit(axis: str, end: float) -> tuple[str, float, Callable[[float], str]]:
    """What an axis is of, what its values are divided by, and how its numbers are written."""
    if axis != "seconds":
        say = formatting.scientific if axis == "flops" else formatting.number
        return {"step": "step", "flops": "FLOPs"}.get(axis, axis), 1.0, say
    for least, scale, name in CLOCKS:
        if end >= least:
            return f"{name} of training", scale, formatting.number
    return "seconds of training", 1.0, formatting.number


def _met(found: Sequence[Training], axis: str) -> Iterator[tuple[str, str]]:
    """Where all that have the axis were last together, and the value of each there."""
    if made := meeting(found, axis):
        at, values = made
        yield "at", spell(axis, at)
        for one, value in zip(found, values, strict=True):
            if value is not None:
                yield one.name, formatting.number(value)
