"""`cancel`: ask a run to stop, from any shell that sees the store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from launch import console
from launch.look import OVER
from launch.options import find_run, store_flag, store_option
from pipeline.disk import write_atomic
from pipeline.errors import Failure

if TYPE_CHECKING:
    from pipeline.journal import Run

PATIENCE = 60.0  # seconds: stages are killed 25 s after they were asked
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
    if state in OVER:
        console.say(f"run {run.id} is over already: {state}")
        return
    write_atomic(run.cancel_file, "cancel now\n" if now else "cancel\n")
    if not run.driven() and _never_begins(run, now):
        console.say(f"run {run.id} had not begun; it will not")
        return
    console.say(f"asked run {run.id} to stop{' at once' if now else ', after a checkpoint'}")
    _await_end(run)


def _never_begins(run: Run, now: bool) -> bool:
    """Take back the job of a run that no driver has taken up; True if that settled it."""
    from launch.submit import stop_job, submitted_to

    cluster = submitted_to(run)
    if cluster is None:
        run.append("run.finished", state="cancelled")
        return True
    return bool(stop_job(run, cluster, now))


def _await_end(run: Run) -> None:
    deadline = time.monotonic() + PATIENCE
    try:
        while (state := run.status().state) not in OVER and time.monotonic() < deadline:
            time.sleep(LOOK)
    except KeyboardInterrupt:
        console.say("it stops without us watching", "dim")
        return
    if state not in OVER:
        raise Failure(
            f"run {run.id} is still {state} after {PATIENCE:.0f} s",
            remedy=f"headwater cancel {run.id} --now{store_flag(run.store)}",
        )
    console.say(f"run {run.id}: {state}", console.STYLES[state])
    console.advise(f"headwater resume {run.id}{store_flag(run.store)}", "goes on where it stopped")
