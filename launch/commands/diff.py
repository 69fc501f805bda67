"""`diff`: in what two runs, or two artifacts, differ: parameters, inputs, sources, figures."""

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

Line = dict[str, Any]


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B", default="latest")
@store_option
@json_option
def diff(first: str, second: str, store_path: str, as_json: bool) -> None:
    """Say how B differs from A; both are runs, or both artifacts (fingerprints, RUN:STAGE)."""
    from launch.commands.show import find_target
    from pipeline.execution.run import Run

    store = open_store(store_path)
    a, b = find_target(store, first), find_target(store, second)
    if isinstance(a, Run) and isinstance(b, Run):
        data = compare_runs(a, b)
    elif not isinstance(a, Run) and not isinstance(b, Run):
        data = [compare_artifacts(b.uses, a, b)]
    else:
        raise UserError("a run and an artifact have nothing to compare", remedy="name RUN:STAGE")
    if as_json:
        console.print_json(data)
    else:
        _show(data)


def compare_runs(a: Run, b: Run) -> list[Line]:
    """One entry a stage of either run."""
    first = {stage.name: stage for stage in a.status().stages}
    second = {stage.name: stage for stage in b.status().stages}
    lines = []
    for name in dict.fromkeys([*first, *second]):
        if name not in second or name not in first:
            only = a if name in first else b
            lines.append({"stage": name, "changes": [f"only in {only.id}"], "metrics": {}})
            continue
        payloads = [run.payload(name) for run in (a, b)]
        changes = _changes(*payloads) if all(payloads) else []
        metrics = _moved(first[name].metrics, second[name].metrics)
        lines.append({"stage": name, "changes": changes, "metrics": metrics})
    return lines


def compare_artifacts(name: str, a: Artifact, b: Artifact) -> Line:
    """The difference of two artifacts."""
    changes = _changes(a.manifest["payload"], b.manifest["payload"])
    if a.uses != b.uses:
        changes.insert(0, f"made by {a.uses} -> {b.uses}")
    if a.manifest["code"].get("source_hash") != b.manifest["code"].get("source_hash"):
        changes.append("code changed")
    if not changes and a.digest != b.digest:
        changes.append("the same fingerprint, other bytes")
    return {"stage": name, "changes": changes, "metrics": _moved(a.metrics, b.metrics)}


def _changes(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    from pipeline.fingerprint import describe_changes

    return describe_changes(a, b)


def _moved(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, list[float | None]]:
    """Figures that are not the same: name to [before, after]."""
    names = dict.fromkeys([*a, *b])
    return {name: [a.get(name), b.get(name)] for name in names if a.get(name) != b.get(name)}


def _show(lines: list[Line]) -> None:
    different = [line for line in lines if line["changes"] or line["metrics"]]
    if not different:
        console.echo("no difference", "green")
    for line in different:
        console.echo(line["stage"], "bold")
        for change in line["changes"]:
            console.echo(f"  {change}")
        table = console.make_table("figure", "A", "B", "B - A", right=["A", "B", "B - A"])
        for name, (a, b) in line["metrics"].items():
            both = a is not None and b is not None
            cells = ["" if value is None else formatting.metric(value) for value in (a, b)]
            table.add_row(name, *cells, f"{b - a:+.4g}" if both else "")
        if line["metrics"]:
            console.print_table(table)
