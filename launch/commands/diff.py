"""`diff`: differences of two runs or artifacts in parameters, inputs, sources and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from launch.ui import console, formatting
from launch.ui.options import json_option, open_store, store_option
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.execution.run import Run
    from pipeline.storage.artifact import Artifact


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B", default="latest")
@store_option
@json_option
def diff(first: str, second: str, store_path: str, as_json: bool) -> None:
    """Show how B differs from A: two runs, or two artifacts (fingerprint or RUN:STAGE)."""
    from launch.commands.show import find_run_or_artifact
    from pipeline.execution.run import Run

    store = open_store(store_path)
    a, b = find_run_or_artifact(store, first), find_run_or_artifact(store, second)
    if isinstance(a, Run) and isinstance(b, Run):
        data = diff_runs(a, b)
    elif not isinstance(a, Run) and not isinstance(b, Run):
        data = [diff_artifacts(b.uses, a, b)]
    else:
        raise UserError(
            "a run cannot be compared with an artifact", remedy="name RUN:STAGE for both"
        )
    if as_json:
        console.print_json(data)
    else:
        _print_entries(data)


def diff_runs(a: Run, b: Run) -> list[dict[str, Any]]:
    """Return one entry per stage of either run."""
    from pipeline.fingerprint import describe_changes

    first = {stage.name: stage for stage in a.status().stages}
    second = {stage.name: stage for stage in b.status().stages}
    entries = []
    for name in dict.fromkeys([*first, *second]):
        if name not in second or name not in first:
            only = a if name in first else b
            entries.append({"stage": name, "changes": [f"only in {only.id}"], "metrics": {}})
            continue
        payloads = [run.payload(name) for run in (a, b)]
        changes = describe_changes(*payloads) if all(payloads) else []
        metrics = _changed_metrics(first[name].metrics, second[name].metrics)
        entries.append({"stage": name, "changes": changes, "metrics": metrics})
    return entries


def diff_artifacts(name: str, a: Artifact, b: Artifact) -> dict[str, Any]:
    """Return the differences of two artifacts under the name of a stage."""
    from pipeline.fingerprint import describe_changes

    changes = describe_changes(a.manifest["payload"], b.manifest["payload"])
    if a.uses != b.uses:
        changes.insert(0, f"made by {a.uses} -> {b.uses}")
    if a.manifest["code"].get("source_hash") != b.manifest["code"].get("source_hash"):
        changes.append("code changed")
    if not changes and a.digest != b.digest:
        changes.append("same fingerprint, different bytes")
    return {"stage": name, "changes": changes, "metrics": _changed_metrics(a.metrics, b.metrics)}


def _changed_metrics(
    a: Mapping[str, float | None], b: Mapping[str, float | None]
) -> dict[str, list[float | None]]:
    """Return [value in a, value in b] of each metric that differs."""
    names = dict.fromkeys([*a, *b])
    return {name: [a.get(name), b.get(name)] for name in names if a.get(name) != b.get(name)}


def _print_entries(entries: list[dict[str, Any]]) -> None:
    different = [entry for entry in entries if entry["changes"] or entry["metrics"]]
    if not different:
        console.echo("no difference", "green")
    for entry in different:
        console.echo(entry["stage"], "bold")
        for change in entry["changes"]:
            console.echo(f"  {change}")
        table = console.make_table("metric", "A", "B", "B - A", right=["A", "B", "B - A"])
        for name, (a, b) in entry["metrics"].items():
            change = None if a is None or b is None else b - a
            table.add_row(name, *map(formatting.metric, (a, b)), formatting.change(change))
        if entry["metrics"]:
            console.print_table(table)
