"""Prints the end of a run: its state, where its outputs are, and the command to type next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from launch.failures import next_command, run_failures
from launch.stage_warnings import print_warnings
from launch.tracking.cursor import unsynced_reason
from launch.ui import console
from launch.ui.options import mlflow_uri, store_flag

if TYPE_CHECKING:
    from pipeline.execution.run import Run
    from pipeline.status import RunStatus


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
    else:
        print_failures(run, status)


def print_failures(run: Run, status: RunStatus, *, stderr: bool = True) -> None:
    """Print the failures of a run that did not finish, their remedies, and the command to type."""
    label = "refused" if status.state == "refused" else "error"
    for failure in run_failures(run, status):
        console.print_paragraph(f"{label}: {failure}", "red", stderr=stderr)
        if failure.remedy:
            console.print_paragraph(failure.remedy, indent=7, stderr=stderr)
    if command := next_command(run, status):
        flag = store_flag(run.store)
        why = command.why + (flag if command.why.startswith("then ") else "")
        console.suggest_command(f"{command.words}{flag}", why, stderr=stderr)
