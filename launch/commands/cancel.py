"""`cancel`: ask a run to stop, from any shell that sees the store."""

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

PATIENCE = 60.0  # seconds: stages are killed 25 s after they were asked
TAKEN_UP = 5.0  # seconds for whoever is about to begin the run, or to send its job
LOOK = 0.2


@click.command()
@click.argument("name", metavar="RUN", default="latest")
@click.option("--now", is_flag=True, help="Do not wait for a checkpoint: stop at once.")
@store_option
def cancel(name: str, now: bool, store_path: str) -> None:
    """Stop a run: its stages write a checkpoint and end within 30 s; `resume` goes on.

    Works for runs here and for runs that were submitted.
    """
    run = find_run(store_path, name)
    state = run.status().state
    if state in TERMINAL_STATES:
        console.echo(f"run {run.id} is over already: {state}")
        return
    write_atomic(run.cancel_file, "cancel now\n" if now else "cancel\n")
    if not run.has_driver() and _never_begins(run, now):
        console.echo(f"run {run.id} had not begun; it will not")
        return
    console.echo(f"asked run {run.id} to stop{' at once' if now else ', after a checkpoint'}")
    _await_end(run)


def _never_begins(run: Run, now: bool) -> bool:
    """Settle a run that no driver has taken up; False if one does, who then sees the cancel file.

    Raises:
        Failure: its head does not answer, so nobody knows.
    """
    from launch.cluster.job_record import is_job_gone, submitted_cluster

    cluster = submitted_cluster(run)
    gone, deadline = None, time.monotonic() + TAKEN_UP
    while gone is None and time.monotonic() < deadline:
        if run.has_driver() or run.status().state in TERMINAL_STATES:
            return False
        gone = is_job_gone(run, cluster, now) if cluster else None
        time.sleep(LOOK)
    if gone is False:
        return False
    run.append("run.finished", state="cancelled")
    return True


def _await_end(run: Run) -> None:
    deadline = time.monotonic() + PATIENCE
    try:
        while (state := run.status().state) not in TERMINAL_STATES and time.monotonic() < deadline:
            time.sleep(LOOK)
    except KeyboardInterrupt:
        console.echo("it stops without us watching", "dim")
        return
    if state not in TERMINAL_STATES:
        raise Failure(
            f"run {run.id} is still {state} after {PATIENCE:.0f} s",
            remedy=f"headwater cancel {run.id} --now{store_flag(run.store)}",
        )
    console.echo(f"run {run.id}: {state}", console.STYLES[state])
    console.suggest_command(
        f"headwater resume {run.id}{store_flag(run.store)}", "goes on where it stopped"
    )
