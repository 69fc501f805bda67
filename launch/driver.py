"""Carrying a run out from the command line: table, MLflow mirror, report, promotion, last words."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from launch.ui import console
from launch.ui.exit_handling import working_in
from launch.ui.options import mlflow_uri, store_flag
from pipeline.errors import HeadwaterError

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.execution.run import Run
    from pipeline.execution.runner import Observer
    from pipeline.status import RunStatus
    from pipeline.storage.store import Store

_WORDS = {"stage.failed": "error", "run.finished": "error", "gate.refused": "refused"}
WIND_UP = 60.0  # seconds that a report and MLflow may take after a run's last event
OURS = "local"  # what `--address` says for a Ray of our own


class Reporter:
    """Writes the HTML page once the journal is complete, before the mirror sends it on."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def start(self) -> None:
        """Nothing to write yet."""

    def stop(self) -> None:
        """The run is over, however it ended."""
        write_report(self.run)


def drive(run: Run, address: str | None = None) -> int:
    """Carry a run out and tell how it ended.

    Args:
        address: the Ray cluster to join; None or `local` starts one of our own.

    Returns:
        The exit code.

    Raises:
        HeadwaterError: the run could not begin, or the engine could not go on.
    """
    from launch.promotion import promote_after
    from launch.ray_launcher import RayLauncher
    from launch.tracking.mirror import Mirror
    from launch.ui.live_table import following
    from pipeline.execution.runner import execute, exit_code

    working_in(run.folder)
    mirror = Mirror(run.store, run, mlflow_uri())
    observers: list[Observer] = [Reporter(run), mirror]  # type: ignore[list-item]
    try:
        with following(run):
            status = execute(
                run,
                run.store,
                RayLauncher(None if address == OURS else address),
                observers=observers,
                on_finished=promote_after,
            )
    except HeadwaterError as error:
        error.remedy = error.remedy or f"headwater resume {run.id}{store_flag(run.store)}"
        raise
    last_words(run, status)
    return exit_code(run)


def last_words(run: Run, status: RunStatus) -> None:
    """How it ended, where everything is, what MLflow lacks, and the line to type next."""
    from launch.tracking.mirror import lacking

    console.say()
    console.say(f"{status.pipeline} {status.run}: {status.state}", console.STYLES[status.state])
    for line in places(run, status):
        console.say(line)
    if why := lacking(run):
        line = f"headwater report {run.id} --sync{store_flag(run.store)}"
        said = f"warning: MLflow has not all of this run: {why}; {line} sends the rest"
        console.say(said, "yellow", stderr=True)
    after(run, status)


def places(run: Run, status: RunStatus) -> list[str]:
    """Where the report, MLflow's pages and the registered models are."""
    from launch.tracking.mlflow_client import ui_line

    lines = []
    if (page := run.folder / "report.html").exists():
        lines.append(f"  report      {page}")
    lines.append(f"  MLflow UI   {ui_line(run.store, mlflow_uri())}")
    for entry in status.registered:
        names = " ".join(f"@{alias}" for alias in entry["aliases"])
        lines.append(f"  registered  {entry['model']} version {entry['version']} {names}")
    lines.append(f"  store       {run.store.root}")
    return lines


def after(run: Run, status: RunStatus) -> None:
    """One line of advice for each end of a run."""
    flag = store_flag(run.store)
    resume = f"headwater resume {run.id}{flag}"
    if status.state == "finished" and status.registered:
        entry = status.registered[-1]
        name = f"{entry['model']}@{entry['aliases'][-1]}"
        console.advise(f'headwater generate {name} "…"{flag}')
    elif status.state == "finished":
        console.advise(f"headwater show {run.id}{flag}")
    elif status.state in ("interrupted", "cancelled"):
        console.advise(resume, "goes on where it stopped")
    else:
        explain(run, status)


def explain(run: Run, status: RunStatus) -> None:
    """What failed, in the words of the journal, and the line to type next."""
    flag = store_flag(run.store)
    resume = f"headwater resume {run.id}{flag}"
    failed = [stage for stage in status.stages if stage.state == "failed"]
    for event in _last_drive(run):
        if event["event"] in _WORDS and event.get("error"):
            stage = f"{event['stage']}: " if "stage" in event else ""
            said = f"{_WORDS[str(event['event'])]}: {stage}{event['error']}"
            console.say(said, "red", stderr=True)
            if remedy := event.get("remedy"):
                console.say(f"       {remedy}", stderr=True)
    if failed:
        console.advise(f"headwater logs {run.id} {failed[0].name}{flag}", f"then {resume}")
    else:
        console.advise(f"headwater status {run.id}{flag}", f"then {resume}")


def _last_drive(run: Run) -> list[dict[str, object]]:
    """The events since a driver took the run up last."""
    events = run.events()
    starts = [i for i, event in enumerate(events) if event["event"] == "run.started"]
    return events[starts[-1] :] if starts else events


def write_report(run: Run) -> Path | None:
    """The HTML page; None if it could not be written, which never matters to the run."""
    from launch.report.run_page import write

    with suppress(OSError, HeadwaterError):
        return write(run, run.store)
    return None


def check_resumable(run: Run, store: Store) -> None:
    """Refuse early what the driver would refuse late; a driver that winds up is waited for.

    Raises:
        UserError: another driver is at work on the run.
    """
    from launch.commands.status import OVER
    from pipeline.errors import UserError

    deadline = time.monotonic() + WIND_UP
    while run.driven() and run.status().state in OVER and time.monotonic() < deadline:
        time.sleep(0.2)
    if run.driven():
        raise UserError(
            f"run {run.id} is at work already",
            remedy=f"headwater status {run.id} --watch{store_flag(store)}",
        )
