"""Prints the end of a run: its state, where its outputs are, and the command to type next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from launch.stage_warnings import print_warnings
from launch.tracking.cursor import unsynced_reason
from launch.ui import console
from launch.ui.options import mlflow_uri, store_flag

if TYPE_CHECKING:
    from pipeline.execution.run import Run
    from pipeline.status import RunStatus

_FAILURE_LABELS = {"stage.failed": "error", "run.finished": "error", "gate.refused": "refused"}


def print_summary(run: Run, status: RunStatus) -> None:
    """Print how a run ended, where its outputs are, what MLflow lacks, and the next command."""
    console.echo()
    console.echo(f"{status.pipeline} {status.run}: {status.state}", console.STYLES[status.state])
    for line in output_locations(run, status):
        console.echo(line)
    print_warnings(run, status)
    if reason := unsynced_reason(run):
        command = f"headwater report {run.id} --sync{store_flag(run.store)}"
        message = f"warning: MLflow lacks part of this run ({reason}); `{command}` sends the rest"
        console.echo(message, "yellow", stderr=True)
    _print_next_command(run, status)


def output_locations(run: Run, status: RunStatus) -> list[str]:
    """Return one line each for the report, the MLflow UI, registered models and the store."""
    from launch.tracking.mlflow_client import ui_command_line

    lines = []
    if (page := run.folder / "report.html").exists():
        lines.append(f"  report      {page}")
    lines.append(f"  MLflow UI   {ui_command_line(run.store, mlflow_uri())}")
    for entry in status.registered:
        names = " ".join(f"@{alias}" for alias in entry["aliases"])
        lines.append(f"  registered  {entry['model']} version {entry['version']} {names}")
    lines.append(f"  store       {run.store.root}")
    return lines


def format_registered(entries: list[dict[str, Any]]) -> str:
    """Return registered model versions on one line: `quickstart v2 @champion`."""
    return ", ".join(
        " ".join([entry["model"], f"v{entry['version']}", *(f"@{a}" for a in entry["aliases"])])
        for entry in entries
    )


def _print_next_command(run: Run, status: RunStatus) -> None:
    flag = store_flag(run.store)
    if status.state == "finished" and status.registered:
        entry = status.registered[-1]
        name = f"{entry['model']}@{entry['aliases'][-1]}"
        console.suggest_command(f'headwater generate {name} "…"{flag}')
    elif status.state == "finished":
        console.suggest_command(f"headwater show {run.id}{flag}")
    elif status.state in ("interrupted", "cancelled"):
        console.suggest_command(f"headwater resume {run.id}{flag}", "continues where it stopped")
    else:
        print_failure(run, status)


def print_failure(run: Run, status: RunStatus) -> None:
    """Print the errors of the last attempt, their remedies, and the next command."""
    flag = store_flag(run.store)
    events = run.events()
    starts = [i for i, event in enumerate(events) if event["event"] == "run.started"]
    for event in events[starts[-1] :] if starts else events:
        if event["event"] in _FAILURE_LABELS and event.get("error"):
            stage = f"{event['stage']}: " if "stage" in event else ""
            message = f"{_FAILURE_LABELS[event['event']]}: {stage}{event['error']}"
            console.echo(message, "red", stderr=True)
            if remedy := event.get("remedy"):
                console.echo(f"       {remedy}", stderr=True)
    failed = [stage for stage in status.stages if stage.state == "failed"]
    resume = f"then headwater resume {run.id}{flag}"
    if failed:
        console.suggest_command(f"headwater logs {run.id} {failed[0].name}{flag}", resume)
    else:
        console.suggest_command(f"headwater status {run.id}{flag}", resume)
