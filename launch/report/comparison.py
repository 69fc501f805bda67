"""Comparison of trainings as one HTML page that needs no network.

It shows their metric over each cost, a table of final values, and the parameters that differ. Like
the report of a run, it is made from the store alone and can be written again at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.report.curve_charts import curve_class, draw_curves
from launch.report.run_page import load_template
from launch.report.svg import STYLE
from launch.report.training_curves import (
    TrainingCurve,
    at_equal_cost,
    differences,
    format_axis_value,
    summary_columns,
)
from launch.ui import formatting
from pipeline.atomic_io import write_atomic

TITLES = {"tokens": "tokens", "flops": "FLOPs", "seconds": "time", "step": "steps"}
TIME_UNITS = (
    (2 * 86400.0, 86400.0, "days"),
    (2 * 3600.0, 3600.0, "hours"),
    (180.0, 60.0, "minutes"),
)


def write_comparison(
    path: Path, groups: Sequence[Sequence[TrainingCurve]], axes: Sequence[str]
) -> None:
    """Write the page.

    Raises:
        Failure: the file cannot be written.
    """
    write_atomic(path, render_comparison(groups, axes), durable=False)


def render_comparison(groups: Sequence[Sequence[TrainingCurve]], axes: Sequence[str]) -> str:
    """Return the page; a group without any of the axes is shown over steps."""
    from markupsafe import Markup

    curves = [curve for group in groups for curve in group]
    return load_template("compare.html.j2").render(
        metric=curves[0].metric,
        runs=len({curve.run.id for curve in curves}),
        groups=[_group(group, axes) for group in groups],
        style=Markup(STYLE),  # noqa: S704
    )


def _group(group: Sequence[TrainingCurve], axes: Sequence[str]) -> dict[str, Any]:
    known = [
        axis for axis in dict.fromkeys(axes) if any(curve.points_over(axis) for curve in group)
    ]
    known = known or ["step"]
    first_is_wide = len(known) % 2 == 1
    return {
        "uses": ", ".join(dict.fromkeys(curve.stage.uses for curve in group)),
        "curves": [
            {
                "name": curve.name,
                "run": curve.run.id,
                "other_runs": curve.other_runs,
                "stage": curve.stage.name,
                "state": curve.stage.state,
                "style": curve_class("s", index),
            }
            for index, curve in enumerate(group)
        ],
        "columns": summary_columns(group),
        "charts": [
            _chart(group, axis, wide=first_is_wide and not i) for i, axis in enumerate(known)
        ],
        "differences": differences(group),
    }


def _chart(curves: Sequence[TrainingCurve], axis: str, *, wide: bool) -> dict[str, Any]:
    """Return the chart of the metric over a cost."""
    from markupsafe import Markup

    points = {curve.name: curve.points_over(axis) for curve in curves}
    label, scale, format_x = _axis(axis, max(line[-1][0] for line in points.values() if line))
    scaled = {name: [(x / scale, y) for x, y in line] for name, line in points.items()}
    drawing = draw_curves(scaled, label, format_x=format_x, log=axis == "flops", wide=wide)
    return {
        "title": f"{curves[0].metric} over {TITLES[axis]}",
        "wide": wide,
        "drawing": Markup(drawing),  # noqa: S704
        "equal_cost": list(_equal_cost_cells(curves, axis)),
        "missing": [name for name, line in points.items() if not line],
    }


def _axis(axis: str, end: float) -> tuple[str, float, Callable[[float], str]]:
    """Return the label of an axis, the divisor of its values and the format of its ticks."""
    if axis != "seconds":
        format_x = formatting.scientific if axis == "flops" else formatting.number
        return {"step": "step", "flops": "FLOPs"}.get(axis, axis), 1.0, format_x
    for minimum, scale, name in TIME_UNITS:
        if end >= minimum:
            return f"{name} of training", scale, formatting.number
    return "seconds of training", 1.0, formatting.number


def _equal_cost_cells(curves: Sequence[TrainingCurve], axis: str) -> Iterator[tuple[str, str]]:
    """Yield the largest cost that all curves reach, then each curve's value there."""
    if found := at_equal_cost(curves, axis):
        cost, values = found
        yield "at", format_axis_value(axis, cost)
        for curve, value in zip(curves, values, strict=True):
            if value is not None:
                yield curve.name, formatting.number(value)
