"""`compare`: training metrics of several runs over their cost, as tables and as one HTML page.

`--json` prints {"metric", "page", "groups"}. A group holds comparable curves: {"uses" (the kind of
stage; empty if stages were named), "lines", "differences", "meetings"}:

lines        one training each: {"name", "run", "same", "stage", "uses", "state", "fingerprint",
             "summary", "points"}. `same` are other runs with the same artifact; `summary` is
             {"final", "eval_loss", "bits_per_byte", "tokens", "flops", "seconds", "steps",
             "tokens_per_second"}, null where unknown; `points` are lists of equal length: "step",
             the metric by its name, and of "tokens", "flops", "seconds" those that are known at
             every step
differences  parameter, or `input EDGE` -> its value in each line, null where it is not set
meetings     "tokens", "flops", "seconds", "step" -> {"at", "values"}: the largest cost that all
             lines reach, and the metric of each there, averaged over the last twentieth
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launch.ui import console, formatting
from launch.ui.options import json_option, open_store, store_option
from pipeline.errors import UserError

if TYPE_CHECKING:
    from launch.report.training_curves import TrainingCurve

PAGE = "compare.html"
AGAINST = ("tokens", "flops", "seconds", "step")


@click.command()
@click.argument("runs", metavar="RUN[:STAGE]...", nargs=-1, required=True)
@click.option("--stage", metavar="NAME", help="Stage of the runs that are given without one.")
@click.option("--metric", default="loss", show_default=True, help="Metric of the series.")
@click.option(
    "--against", type=click.Choice(AGAINST), multiple=True, metavar="AXIS",
    help="tokens, flops, seconds or step; repeatable.  [default: the first three]",
)  # fmt: skip
@click.option(
    "-o", "--output", metavar="FILE.html", help=f"Page to write.  [default: STORE/{PAGE}]"
)
@store_option
@json_option
def compare(
    runs: tuple[str, ...],
    stage: str | None,
    metric: str,
    against: tuple[str, ...],
    output: str | None,
    store_path: str,
    as_json: bool,
) -> None:
    """Plot a training metric of several runs over tokens, FLOPs and time.

    Without a stage, all stages of a run that count tokens are compared.
    """
    from launch.promotion import split_target
    from launch.report.training_curves import load_training_curves
    from pipeline.execution.run import Run

    store = open_store(store_path)
    named = [split_target(target) for target in runs]
    targets = [(Run.find(store, run), own or stage or "") for run, own in named]
    groups = load_training_curves(targets, metric)
    page = Path(output) if output else None if as_json else store.root / PAGE
    if page:
        if not page.absolute().parent.is_dir():
            raise UserError("no such folder", where=str(page.parent))
        from launch.report.comparison import write_comparison

        write_comparison(page, groups, against or AGAINST[:3])
    if as_json:
        all_named = all(name for _, name in targets)
        described = [describe_group(group, named=all_named) for group in groups]
        path = str(page) if page else None
        console.print_json({"metric": metric, "page": path, "groups": described})
        return
    for group in groups:
        _print_group(group)
    console.echo(str(page))


def describe_group(group: list[TrainingCurve], *, named: bool) -> dict[str, Any]:
    """Return a group of `--json`; see the module docstring."""
    from launch.report.training_curves import at_equal_cost, differences

    at_costs = {axis: at for axis in AGAINST if (at := at_equal_cost(group, axis))}
    return {
        "uses": "" if named else group[0].stage.uses,
        "lines": [_describe_curve(curve) for curve in group],
        "differences": differences(group),
        "meetings": {a: {"at": at, "values": values} for a, (at, values) in at_costs.items()},
    }


def _describe_curve(curve: TrainingCurve) -> dict[str, Any]:
    steps = [step for step, _ in curve.points]
    points = {"step": steps, curve.metric: [value for _, value in curve.points]}
    for axis in AGAINST[:3]:
        cost = curve.cumulative(axis)
        if all(step in cost for step in steps):
            points[axis] = [cost[step] for step in steps]
    return {
        "name": curve.name,
        "run": curve.run.id,
        "same": curve.other_runs,
        "stage": curve.stage.name,
        "uses": curve.stage.uses,
        "state": curve.stage.state,
        "fingerprint": curve.stage.fingerprint,
        "summary": curve.summary(),
        "points": points,
    }


def _print_group(group: list[TrainingCurve]) -> None:
    """Print the tables of a group: final values, values at equal cost, differences."""
    from launch.report.training_curves import (
        at_equal_cost,
        differences,
        format_axis_value,
        summary_columns,
    )

    columns = summary_columns(group)
    table = console.make_table("training", "state", *columns, right=columns)
    for curve, cells in zip(group, zip(*columns.values(), strict=True), strict=True):
        table.add_row(curve.name, console.format_state(curve.stage.state), *cells)
    console.print_table(table)
    names = [curve.name for curve in group]
    equal_costs = [(axis, *found) for axis in AGAINST[:3] if (found := at_equal_cost(group, axis))]
    if equal_costs:
        table = console.make_table("", *names, right=names)
        for axis, cost, values in equal_costs:
            table.add_row(f"at {format_axis_value(axis, cost)}", *map(formatting.number, values))
        console.print_table(table)
    if differing := differences(group):
        table = console.make_table("parameter", *names, flexible=names)
        for key, settings in differing.items():
            table.add_row(key, *(formatting.DASH if v is None else v for v in settings))
        console.print_table(table)
    console.echo()
