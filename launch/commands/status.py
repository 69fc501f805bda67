"""`status`: the state and progress of a run, read from the store."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from launch.failures import next_command, run_failures
from launch.run_summary import format_registered
from launch.ui import console
from launch.ui.options import find_run, json_option, store_option
from pipeline.errors import UserError
from pipeline.status import TERMINAL_STATES

if TYPE_CHECKING:
    from pipeline.execution.run import Run


@click.command()
@click.argument("name", metavar="RUN", default="latest")
@click.option("--watch", is_flag=True, help="Keep updating until the run ends.")
@store_option
@json_option
def status(name: str, watch: bool, store_path: str, as_json: bool) -> None:
    """Show the state, progress and metrics of each stage of a run."""
    if watch and as_json:
        raise UserError("--watch and --json exclude each other", remedy="give only one of them")
    run = find_run(store_path, name)
    if as_json:
        console.print_json(describe_status(run))
        return
    if watch:
        _watch(run)
    else:
        from launch.ui.live_table import StatusTable

        screen = console.get_console()
        screen.print(StatusTable().draw(run.status(), screen.width))
    _print_footnotes(run)


def describe_status(run: Run) -> dict[str, Any]:
    """Return what `status --json` prints."""
    status = run.status()
    failures = [asdict(failure) for failure in run_failures(run, status)]
    command = next_command(run, status)
    return {**status.to_json(), "failures": failures, "next": command.words if command else ""}


def _watch(run: Run) -> None:
    from launch.ui.live_table import watch

    def wait_for_end(seconds: float) -> bool:
        time.sleep(seconds)
        return run.status().state in TERMINAL_STATES

    try:
        watch(run, wait_for_end)
    except KeyboardInterrupt:
        command = f"headwater status {run.id} --watch"
        console.echo(f"the run continues; `{command}` shows it again", "dim")


def _print_footnotes(run: Run) -> None:
    """Print what the table has no room for: origin, registered models, errors, next command."""
    from launch.cluster.job_record import submitted_cluster
    from launch.run_summary import print_failures
    from launch.stage_warnings import print_warnings

    status = run.status()
    print_warnings(run, status)
    if status.origin:
        console.echo(f"continues run {status.origin}", "dim")
    if status.registered:
        console.echo(f"registered {format_registered(status.registered)}")
    print_failures(run, status)
    if status.state == "pending" and (cluster := submitted_cluster(run)):
        command = f"headwater cluster status {cluster}"
        console.suggest_command(command, "shows whether its job is queued or running")
