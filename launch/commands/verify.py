"""`verify`: compare stored artifacts with what was published."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launch.ui import console, formatting
from launch.ui.options import json_option, open_store, store_flag, store_option

if TYPE_CHECKING:
    from pipeline.storage.store import Store


@click.command()
@click.argument("target", metavar="[RUN|ARTIFACT]", default="latest")
@click.option("--all", "check_all", is_flag=True, help="Verify every artifact of the store.")
@click.option(
    "--relocate", is_flag=True, help="Also make MLflow's locations follow a store that has moved."
)
@store_option
@json_option
def verify(target: str, check_all: bool, relocate: bool, store_path: str, as_json: bool) -> None:
    """Verify the checksums of all files of a run, of an artifact, or of the whole store.

    A corrupt artifact is moved to quarantine, so that the next run produces it again.
    """
    store = open_store(store_path)
    if relocate:
        _relocate(store)
    folders = list(store.folders() if check_all else _artifact_folders(store, target))
    entries = [verify_artifact(store, folder) for folder in folders]
    corrupt = [entry for entry in entries if entry["problems"]]
    if as_json:
        console.print_json(entries)
    else:
        _print_entries(entries, corrupt)
        for run in dict.fromkeys(_newest_user(store, entry["fingerprint"]) for entry in corrupt):
            console.suggest_command(
                f"headwater resume {run}{store_flag(store)}", "produces it again"
            )
    if corrupt:
        sys.exit(1)


def _relocate(store: Store) -> None:
    from launch.tracking import mlflow_client
    from launch.tracking.model_registry import LOCK_TIMEOUT

    uri = mlflow_client.tracking_uri(store)
    with mlflow_client.mlflow_errors(uri), mlflow_client.writer_lock(store, LOCK_TIMEOUT):
        count = mlflow_client.relocate(store, uri)
    console.echo(f"{count} locations in MLflow were replaced", "dim", stderr=True)


def _artifact_folders(store: Store, target: str) -> Iterator[Path]:
    from launch.commands.show import find_run_or_artifact
    from pipeline.execution.run import Run

    found = find_run_or_artifact(store, target)
    if isinstance(found, Run):
        yield from (Path(stage.path) for stage in found.status().stages if stage.path)
    else:
        yield found.path


def verify_artifact(store: Store, folder: Path) -> dict[str, Any]:
    """Verify one artifact and quarantine it if it is corrupt; return its `--json` entry."""
    from pipeline.storage.artifact import Artifact

    problems = store.verify(folder)
    entry: dict[str, Any] = {
        "uses": folder.parent.name,
        "fingerprint": folder.name[:16],
        "path": str(folder),
        "files": 0,
        "bytes": 0,
        "problems": problems,
    }
    if problems:
        store.quarantine(folder, "; ".join(problems))
        return entry
    artifact = Artifact.read(folder)
    return {**entry, "files": len(artifact.manifest["files"]), "bytes": artifact.size}


def _newest_user(store: Store, fingerprint: str) -> str:
    """Return the newest run that has a stage with this fingerprint."""
    from pipeline.execution.run import list_runs

    for run in reversed(list_runs(store)):
        if any(stage.fingerprint == fingerprint for stage in run.status().stages):
            return run.id
    return "RUN"


def _print_entries(entries: list[dict[str, Any]], corrupt: list[dict[str, Any]]) -> None:
    for entry in corrupt:
        console.echo(f"✗ {entry['uses']}/{entry['fingerprint']}", "red")
        for problem in entry["problems"]:
            console.echo(f"    {problem}")
        console.echo("    moved to quarantine; the next run produces it again", "dim")
    files, size = sum(e["files"] for e in entries), sum(e["bytes"] for e in entries)
    console.echo(
        f"{len(entries) - len(corrupt)} of {len(entries)} artifacts are intact: "
        f"{files} files, {formatting.size(size)}",
        "red" if corrupt else "green",
    )
