"""`list`: the runs of a store."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from launch.failures import FAILED_STATES, run_failures
from launch.run_summary import format_registered, print_failures
from launch.ui import console, formatting
from launch.ui.options import json_option, open_store, store_option
from pipeline.status import COMPLETED_STATES

if TYPE_CHECKING:
    from pipeline.execution.run import Run

NEWEST = 20
EXPLAINED = 3  # failed runs whose errors are printed


@click.command(name="list")
@click.option("--all", "show_all", is_flag=True, help=f"List all runs, not only the last {NEWEST}.")
@store_option
@json_option
def list_runs(show_all: bool, store_path: str, as_json: bool) -> None:
    """List the runs of a store, newest last."""
    from pipeline.execution.run import list_runs

    store = open_store(store_path)
    found = list_runs(store)
    entries = [summarize_run(run) for run in (found if show_all else found[-NEWEST:])]
    if as_json:
        console.print_json(entries)
    elif not entries:
        console.echo(f"no runs in {store.root}")
        console.suggest_command("headwater run CONFIG")
    else:
        _print_table(entries)
        if len(entries) < len(found):
            console.echo(f"  and {len(found) - len(entries)} older ones: --all", "dim")
        _print_failed(found[-len(entries) :])


def summarize_run(run: Run) -> dict[str, Any]:
    """Return the entry of a run in `list --json`."""
    status = run.status()
    times = [formatting.timestamp(event["time"]) for event in run.events()]
    return {
        "run": run.id,
        "pipeline": status.pipeline,
        "state": status.state,
        "done": sum(stage.state in COMPLETED_STATES for stage in status.stages),
        "stages": len(status.stages),
        "started": run.events()[0]["time"] if times else "",
        "seconds": times[-1] - times[0] if times else None,
        "origin": status.origin,
        "registered": status.registered,
        "failures": [asdict(failure) for failure in run_failures(run, status)],
    }


def _print_failed(runs: list[Run]) -> None:
    """Print why the newest failed runs failed, and the command to type for each."""
    failed = [(run, status) for run in runs if (status := run.status()).state in FAILED_STATES]
    for run, status in failed[-EXPLAINED:]:
        console.echo()
        console.print_line((run.id, "bold"))
        print_failures(run, status, stderr=False)
    if len(failed) > EXPLAINED:
        console.echo(f"  {len(failed) - EXPLAINED} more failed: headwater status RUN", "dim")


def _print_table(entries: list[dict[str, Any]]) -> None:
    titles = ["run", "pipeline", "state", "stages", "time"]
    has_models = any(entry["registered"] for entry in entries)
    wide = console.get_console().width >= console.NARROW
    has_origin = wide and any(entry["origin"] for entry in entries)
    titles += ["registered"] * has_models + ["continues"] * has_origin
    table = console.make_table(*titles, right=["time"], flexible=["registered"])
    for entry in entries:
        cells = [
            entry["run"],
            entry["pipeline"],
            console.format_state(entry["state"]),
            f"{entry['done']}/{entry['stages']}",
            formatting.duration(entry["seconds"]),
        ]
        cells += [format_registered(entry["registered"])] * has_models
        cells += [entry["origin"]] * has_origin
        table.add_row(*cells)
    console.print_table(table)
