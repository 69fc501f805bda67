"""`cancel`: stop a run, from any shell that sees the store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from launch.ui import console
from launch.ui.options import find_run, store_flag, store_option
from pipeline.atomic_io import write_atomic
from pipeline.errors import Failure
from pipeline.status import TERMINAL_STATES

if TYPE_CHECKING:
    from pipeline.execution.run import Run

END_TIMEOUT = 60.0  # seconds; stages are killed 25 s after they were cancelled
START_TIMEOUT = 5.0  # seconds for a driver that is about to start the run or to submit its job
POLL_INTERVAL = 0.2


@click.command()
@click.argument("name", metavar="RUN", default="latest")
@click.option("--now", is_flag=True, help="Stop at once, without a checkpoint.")
@store_option
def cancel(name: str, now: bool, store_path: str) -> None:
    """Stop a run. Its stages write a checkpoint and end within 30 s; `resume` continues it.

    Works for local and for submitted runs.
    """
    run = find_run(store_path, name)
    state = run.status().state
    if state in TERMINAL_STATES:
        console.echo(f"run {run.id} is already over: {state}")
        return
    write_atomic(run.cancel_file, "cancel now\n" if now else "cancel\n")
    if not run.has_driver() and _cancel_before_start(run, now):
        console.echo(f"run {run.id} was cancelled before it started")
        return
    console.echo(f"stopping run {run.id}{' at once' if now else ' after a checkpoint'}")
    _wait_until_over(run)


def _cancel_before_start(run: Run, now: bool) -> bool:
    """Record the cancellation of a run that no driver starts; return False if a driver does, which
    then reads the cancel file.

    Raises:
        Failure: the head does not answer, so the state of the run's job is unknown.
    """
    from launch.cluster.job_record import is_job_gone, submitted_cluster

    cluster = submitted_cluster(run)
    gone, deadline = None, time.monotonic() + START_TIMEOUT
    while gone is None and time.monotonic() < deadline:
        if run.has_driver() or run.status().state in TERMINAL_STATES:
            return False
        gone = is_job_gone(run, cluster, now) if cluster else None
        time.sleep(POLL_INTERVAL)
    if gone is False:
        return False
    run.append("run.finished", state="cancelled")
    return True


def _wait_until_over(run: Run) -> None:
    deadline = time.monotonic() + END_TIMEOUT
    try:
        while (state := run.status().state) not in TERMINAL_STATES and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL)
    except KeyboardInterrupt:
        console.echo("the run is still stopping", "dim")
        return
    flag = store_flag(run.store)
    if state not in TERMINAL_STATES:
        raise Failure(
            f"run {run.id} is still {state} after {END_TIMEOUT:.0f} s",
            remedy=f"headwater cancel {run.id} --now{flag}",
        )
    console.echo(f"run {run.id}: {state}", console.STYLES[state])
    console.suggest_command(f"headwater resume {run.id}{flag}", "continues where it stopped")
