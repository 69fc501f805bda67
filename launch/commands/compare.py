"""`compare`: what trainings came to for what they cost, as tables and as one HTML page.

`--json` prints {"metric", "page", "groups"}. A group is what is shown together: {"uses" (the kind
of stage; empty if stages were named), "lines", "differences", "meetings"}:

lines        one training each: {"name", "run", "same", "stage", "uses", "state", "fingerprint",
             "summary", "points"}. `same` are other runs with this very artifact; `summary` is
             {"final", "eval_loss", "bits_per_byte", "tokens", "flops", "seconds", "steps",
             "tokens_per_second"}, null where nothing is known; `points` are lists of one length:
             "step", the metric by its name, and of "tokens", "flops", "seconds" those that are
             known at every step
differences  parameter, or `input EDGE` -> its value in each line, null where the file is silent
meetings     "tokens", "flops", "seconds", "step" -> {"at", "values"}: as far as all lines come,
             and the metric of each there, over the last twentieth of the way
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launch.ui import console, formatting
from launch.ui.options import json_option, open_store, store_option
from pipeline.errors import UserError

if TYPE_CHECKING:
    from launch.report.training_curves import Training

PAGE = "compare.html"
AGAINST = ("tokens", "flops", "seconds", "step")


@click.command()
@click.argument("runs", metavar="RUN[:STAGE]...", nargs=-1, required=True)
@click.option("--stage", metavar="NAME", help="Of the runs that name none themselves.")
@click.option("--metric", default="loss", show_default=True, help="A figure of their series.")
@click.option(
    "--against", type=click.Choice(AGAINST), multiple=True, metavar="AXIS",
    help="tokens, flops, seconds or step; may be given again. [the first three]",
)  # fmt: skip
@click.option("-o", "--output", metavar="FILE.html", help=f"Where the page goes. [STORE/{PAGE}]")
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
    """Show trainings against tokens, FLOPs and time, several runs in one picture.

    RUN is named as elsewhere; without a stage, every one that counts tokens is shown.
    """
    from launch.promotion import split_target
    from launch.report.training_curves import trainings
    from pipeline.execution.run import Run

    store = open_store(store_path)
    named = [split_target(target) for target in runs]
    targets = [(Run.find(store, run), own or stage or "") for run, own in named]
    groups = trainings(targets, metric)
    page = Path(output) if output else None if as_json else store.root / PAGE
    if page:
        if not page.absolute().parent.is_dir():
            raise UserError("there is no such folder", where=str(page.parent))
        from launch.report.comparison import write

        write(page, groups, against or AGAINST[:3])
    if as_json:
        console.print_json({
            "metric": metric,
            "page": str(page) if page else None,
            "groups": [described(group, named=all(own for _, own in targets)) for group in groups],
        })  # fmt: skip
        return
    for group in groups:
        _show(group)
    console.echo(str(page))


def described(group: list[Training], *, named: bool) -> dict[str, Any]:
    """A group as `--json` prints it; see the module."""
    from launch.report.training_curves import differences, meeting

    meetings = {axis: at for axis in AGAINST if (at := meeting(group, axis))}
    return {
        "uses": "" if named else group[0].stage.uses,
        "lines": [_line(one) for one in group],
        "differences": differences(group),
        "meetings": {a: {"at": at, "values": values} for a, (at, values) in meetings.items()},
    }


def _line(one: Training) -> dict[str, Any]:
    steps = [step for step, _ in one.line]
    points = {"step": steps, one.metric: [value for _, value in one.line]}
    for axis in AGAINST[:3]:
        spent = one.spent(axis)
        if all(step in spent for step in steps):
            points[axis] = [spent[step] for step in steps]
    return {
        "name": one.name,
        "run": one.run.id,
        "same": one.same,
        "stage": one.stage.name,
        "uses": one.stage.uses,
        "state": one.stage.state,
        "fingerprint": one.stage.fingerprint,
        "summary": one.summary(),
        "points": points,
    }


def _show(group: list[Training]) -> None:
    """The tables of a group: what came of each, how they stood where all came, what differs."""
    from launch.report.training_curves import differences, figures, meeting, spell

    columns = figures(group)
    table = console.make_table("training", "state", *columns, right=columns)
    for one, cells in zip(group, zip(*columns.values(), strict=True), strict=True):
        table.add_row(one.name, console.format_state(one.stage.state), *cells)
    console.print_table(table)
    names = [one.name for one in group]
    met = [(axis, *made) for axis in AGAINST[:3] if (made := meeting(group, axis))]
    if met:
        table = console.make_table("", *names, right=names)
        for axis, at, values in met:
            table.add_row(f"at {spell(axis, at)}", *map(formatting.number, values))
        console.print_table(table)
    if found := differences(group):
        table = console.make_table("differs", *names, flexible=names)
        told = {key: ["–" if v is None else v for v in values] for key, values in found.items()}
        console.print_table(
            console.add_rows(table, [[key, *values] for key, values in told.items()])
        )
    console.echo("")
