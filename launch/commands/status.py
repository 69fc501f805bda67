"""`list`, `status` and `report`: read the store, so they work for any run from any shell."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from launch.ui import console, formatting
from launch.ui.options import (
    find_run,
    json_option,
    mlflow_uri,
    open_store,
    store_flag,
    store_option,
)
from pipeline.errors import Failure, UserError

if TYPE_CHECKING:
    from pipeline.execution.run import Run
    from pipeline.status import RunStatus

NEWEST = 20
OVER = ("finished", "failed", "refused", "interrupted", "cancelled")


@click.command(name="list")
@click.option("--all", "everything", is_flag=True, help=f"All runs, not the newest {NEWEST}.")
@store_option
@json_option
def list_runs(everything: bool, store_path: str, as_json: bool) -> None:
    """List the runs of a store, the newest last."""
    from pipeline.execution.run import runs

    store = open_store(store_path)
    found = runs(store)
    lines = [_line(run) for run in (found if everything else found[-NEWEST:])]
    if as_json:
        console.print_json(lines)
    elif not lines:
        console.say(f"no runs in {store.root}")
        console.advise("headwater run CONFIG")
    else:
        console.show(_list_table(lines))
        if len(lines) < len(found):
            console.say(f"  and {len(found) - len(lines)} older ones: --all", "dim")


def _line(run: Run) -> dict[str, Any]:
    status = run.status()
    times = [event["time"] for event in run.events()]
    return {
        "run": run.id,
        "pipeline": status.pipeline,
        "state": status.state,
        "done": sum(stage.state in ("cached", "finished") for stage in status.stages),
        "stages": len(status.stages),
        "started": times[0] if times else "",
        "seconds": formatting.seconds(times[-1]) - formatting.seconds(times[0]) if times else None,
        "origin": status.origin,
        "registered": status.registered,
    }


def _list_table(lines: list[dict[str, Any]]) -> Any:
    titles = ["run", "pipeline", "state", "stages", "took"]
    origin = any(line["origin"] for line in lines)
    models = any(line["registered"] for line in lines)
    titles += ["registered"] * models + ["goes on from"] * origin
    table = console.table(*titles, right=["took"], flexible=["registered"])
    for line in lines:
        cells = [
            line["run"],
            line["pipeline"],
            console.state(line["state"]),
            f"{line['done']}/{line['stages']}",
            formatting.duration(line["seconds"]),
        ]
        cells += [registered(line["registered"])] * models + [line["origin"]] * origin
        table.add_row(*cells)
    return table


def registered(entries: list[dict[str, Any]]) -> str:
    """`quickstart v2 @champion`."""
    return ", ".join(
        " ".join([entry["model"], f"v{entry['version']}", *(f"@{a}" for a in entry["aliases"])])
        for entry in entries
    )


@click.command()
@click.argument("name", metavar="RUN", default="latest")
@click.option("--watch", is_flag=True, help="Keep showing it until it is over.")
@store_option
@json_option
def status(name: str, watch: bool, store_path: str, as_json: bool) -> None:
    """Show where a run stands: each stage with its state, progress and figures."""
    if watch and as_json:
        raise UserError("--watch shows a table, --json prints once", remedy="name one of the two")
    run = find_run(store_path, name)
    if as_json:
        console.print_json(run.status().to_json())
        return
    if watch:
        _watch(run)
    else:
        _draw(run)
    _footnotes(run, run.status())


def _watch(run: Run) -> None:
    from launch.ui.live_table import watch

    def ended(seconds: float) -> bool:
        time.sleep(seconds)
        return run.status().state in OVER

    try:
        watch(run, ended)
    except KeyboardInterrupt:
        console.say(f"the run goes on; headwater status {run.id} --watch shows it again", "dim")


def _draw(run: Run) -> None:
    from launch.ui.live_table import Board

    screen = console.screen()
    screen.print(Board().draw(run.status(), screen.width))


def _footnotes(run: Run, status: RunStatus) -> None:
    """What the table has no room for: why it waits or failed, and what comes next."""
    from launch.commands.submit import submitted_to
    from launch.driver import explain

    if status.origin:
        console.say(f"goes on from {status.origin}", "dim")
    if status.registered:
        console.say(f"registered {registered(status.registered)}")
    if status.state in ("failed", "refused"):
        explain(run, status)
    elif status.state in ("interrupted", "cancelled"):
        console.advise(f"headwater resume {run.id}{store_flag(run.store)}")
    elif status.state == "pending" and (cluster := submitted_to(run)):
        console.advise(f"headwater cluster status {cluster}", "says whether its job is on its way")


@click.command()
@click.argument("name", metavar="RUN", default="latest")
@click.option("--sync", is_flag=True, help="Also send MLflow what it has not.")
@store_option
def report(name: str, sync: bool, store_path: str) -> None:
    """Write the run's HTML page (one file, no network) and say where it is."""
    from launch.report.run_page import write

    run = find_run(store_path, name)
    page = write(run, run.store)
    if not page.is_file():
        raise Failure("the report was not written", where=str(page))
    console.say(str(page))
    if sync:
        from launch.tracking.mirror import Mirror, address_of

        Mirror(run.store, run, mlflow_uri() or address_of(run)).sync()
        console.say("MLflow has all of it", "green")
