"""The plan of a pipeline as tables: action and reason per stage, and estimated costs."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rich.text import Text

from launch.ui import console, formatting

if TYPE_CHECKING:
    from pipeline.execution.plan import Plan

COSTS = {
    "tokens": ("tokens", formatting.number),
    "flops": ("FLOPs", formatting.number),
    "memory_bytes": ("memory", formatting.size),
    "disk_bytes": ("disk", formatting.size),
    "seconds": ("time", formatting.duration),
}
BREAKDOWN_WIDTH = 38  # columns; with the other two the table fits a terminal of 80
NBSP = "\N{NO-BREAK SPACE}"  # `textwrap` does not break a line here
WIDE_ONLY = ("flops", "disk_bytes")  # columns that a narrow terminal omits
FORMATS: dict[str, Callable[[float], str]] = {
    "count": formatting.number,
    "bytes": formatting.size,
    "seconds": formatting.duration,
    "share": lambda value: f"{100 * value:.0f} %",
}


def print_plan(plan: Plan) -> None:
    """Print the plan as a table, then estimates, warnings and totals."""
    costs = [key for key in COSTS if any(stage.estimate.get(key) for stage in plan.stages)]
    if console.get_console().width < console.NARROW:
        costs = [key for key in costs if key not in WIDE_ONLY]
    titles = [COSTS[key][0] for key in costs]
    table = console.make_table(
        "stage", "action", "reason", *titles, right=titles, flexible=["reason"]
    )
    for stage in plan.stages:
        found = stage.estimate
        cells = [COSTS[key][1](found[key]) if key in found else "" for key in costs]
        if stage.action in ("cached", "skip"):
            cells = [""] * len(costs)
        reason = "" if stage.reason == stage.action else stage.reason
        table.add_row(stage.name, console.format_state(stage.action), reason, *cells)
    console.echo(f"plan of {plan.pipeline}", "bold")
    console.print_table(table)
    print_estimates(plan)
    for stage in plan.stages:
        for warning in stage.warnings:
            console.print_paragraph(f"warning: {stage.name}: {warning}", "yellow", indent=2)
    console.echo(summarize_plan(plan), "dim")


def print_estimates(plan: Plan) -> None:
    """Print one table with the estimates of all stages that have some, with their parts."""
    table = console.make_table("stage", "value", "breakdown", right=["value"])
    for stage in plan.stages:
        if stage.action in ("run", "resume") and stage.estimate_rows:
            rows = map(estimate_cells, stage.estimate_rows)
            for row in [(stage.name, "", ""), *rows]:
                table.add_row(*row)
    if table.row_count:
        console.print_table(table)


def estimate_cells(row: Mapping[str, Any]) -> tuple[str, str, Text]:
    """Return the cells of a row: indented name, value, and parts (`image tower 304 M, text tower
    124 M`), wrapped between parts."""
    show = FORMATS[row["unit"]]
    parts = [f"{label} {show(value)}".replace(" ", NBSP) for label, value in row["parts"].items()]
    notes = [row["note"]] if row["note"] else []
    lines = textwrap.wrap(", ".join([*parts, *notes]), BREAKDOWN_WIDTH)
    breakdown = Text("\n").join(console.plain_text(line.replace(NBSP, " ")) for line in lines)
    return f"  {row['name']}", show(row["value"]), breakdown


def summarize_plan(plan: Plan) -> str:
    """Return the number of stages per action, with the estimated time where it is known:
    `3 cached, 5 to run, at least 2h 10m of work`."""
    actions = [stage.action for stage in plan.stages]
    labels = {"cached": "cached", "resume": "to resume", "run": "to run", "skip": "skipped"}
    parts = [f"{actions.count(key)} {label}" for key, label in labels.items() if key in actions]
    work = [stage for stage in plan.stages if stage.action in ("run", "resume")]
    seconds = [stage.estimate["seconds"] for stage in work if stage.estimate.get("seconds")]
    time = f", at least {formatting.duration(sum(seconds))} of work" if seconds else ""
    return ", ".join(parts) + time
