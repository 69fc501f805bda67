"""`show`: artifacts of a run; or content, lineage and readers of an artifact."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
from rich.tree import Tree

from launch.run_summary import format_registered
from launch.ui import console, formatting
from launch.ui.options import json_option, open_store, store_option
from pipeline.errors import NotFound

if TYPE_CHECKING:
    from pipeline.execution.run import Run
    from pipeline.storage.artifact import Artifact
    from pipeline.storage.store import Store

MAX_ROWS = 30
_FINGERPRINT = re.compile(r"(?:[a-z0-9._-]+/)?[0-9a-f]{6,16}(?:\.\d+)?")


@click.command()
@click.argument("target", metavar="RUN|ARTIFACT", default="latest")
@store_option
@json_option
def show(target: str, store_path: str, as_json: bool) -> None:
    """Show the artifacts of a run, or the files, metrics, inputs and readers of an artifact.

    ARTIFACT is a fingerprint (or its first characters) or RUN:STAGE.
    """
    from pipeline.execution.run import Run

    store = open_store(store_path)
    found = find_run_or_artifact(store, target)
    if isinstance(found, Run):
        data = describe_run(found)
        console.print_json(data) if as_json else _print_run(found, data)
    else:
        data = describe_artifact(store, found)
        console.print_json(data) if as_json else _print_artifact(store, found, data)


def find_run_or_artifact(store: Store, target: str) -> Run | Artifact:
    """Return the run or the artifact that a target names.

    Raises:
        NotFound: no such run or artifact.
    """
    from launch.promotion import split_target, stage_artifact
    from pipeline.execution.run import Run

    if ":" in target:
        name, stage = split_target(target)
        return stage_artifact(Run.find(store, name), stage)
    if _FINGERPRINT.fullmatch(target):
        try:
            return store.by_fingerprint(target)
        except NotFound:
            if "/" in target:
                raise
    return Run.find(store, target)


def describe_run(run: Run) -> dict[str, Any]:
    """Return what `show RUN --json` prints: the status, with the origin of each artifact."""
    data = run.status().to_json()
    for entry in data["stages"]:
        artifact = (
            run.store.latest_readable(entry["uses"], entry["fingerprint"])
            if entry["path"]
            else None
        )
        if artifact:
            manifest = artifact.manifest
            entry |= {
                "digest": artifact.digest,
                "bytes": artifact.size,
                "files": len(manifest["files"]),
                "made_by": manifest["run"],
                "inputs": manifest["inputs"],
            }
    return data


def _print_run(run: Run, data: dict[str, Any]) -> None:
    status = run.status()
    state = console.format_state(status.state)
    console.print_line((status.pipeline, "bold"), "  ", (run.id, "cyan"), "   ", state)
    titles = ("stage", "kind", "state", "fingerprint", "size", "time", "metrics")
    wide = console.get_console().width >= console.NARROW
    table = console.make_table(
        *titles[: 7 if wide else 6], right=["size", "time"], flexible=["metrics"]
    )
    for entry in data["stages"]:
        table.add_row(
            entry["name"],
            entry["kind"],
            console.format_state(entry["state"]),
            entry["fingerprint"],
            formatting.size(entry.get("bytes")),
            formatting.duration(entry["seconds"]),
            *([console.format_metrics(entry["metrics"], entry["kind"], 2)] if wide else []),
        )
    console.print_table(table)
    if status.origin:
        console.echo(f"continues run {status.origin}", "dim")
    if status.registered:
        console.echo(f"registered {format_registered(status.registered)}")
    console.echo(f"folder {run.folder}", "dim")


def describe_artifact(store: Store, artifact: Artifact) -> dict[str, Any]:
    """Return what `show ARTIFACT --json` prints: its manifest, its folder and its readers."""
    readers = [
        {"uses": reader.uses, "fingerprint": reader.fingerprint}
        for reader in _readers(store, artifact)
    ]
    facts = {"metrics": artifact.metrics, "path": str(artifact.path), "read_by": readers}
    return {**artifact.manifest, **facts}


def _readers(store: Store, artifact: Artifact) -> Iterator[Artifact]:
    """Yield the artifacts that were made from this one."""
    for other in store.artifacts():
        references = (ref for refs in other.manifest["inputs"].values() for ref in refs)
        if any(ref["digest"] == artifact.digest for ref in references):
            yield other


def _print_artifact(store: Store, artifact: Artifact, data: dict[str, Any]) -> None:
    manifest = artifact.manifest
    code = manifest["code"]
    dirty = " with uncommitted changes" if code.get("dirty") else ""
    facts = [
        ("kind", artifact.kind),
        ("fingerprint", artifact.fingerprint),
        ("digest", artifact.digest),
        ("made by", f"{manifest['run'].get('stage')} of {manifest['run'].get('id')}"),
        ("created", f"{manifest['created']} in {formatting.duration(manifest['seconds'])}"),
        (
            "code",
            f"version {manifest['version']}, commit {(code.get('commit') or 'none')[:12]}{dirty}",
        ),
        ("files", f"{len(manifest['files'])}, {formatting.size(artifact.size)}"),
        ("folder", str(artifact.path)),
    ]
    console.echo(f"{artifact.uses}/{artifact.fingerprint}", "bold")
    for name, value in facts:
        console.print_line((f"  {name:<12}", "dim"), value)
    wide = max([22, *map(len, artifact.metrics)])
    for name, number in artifact.metrics.items():
        console.print_line((f"  {name:<{wide}}  ", "dim"), formatting.metric(number))
    _print_panels(artifact)
    console.get_console().print(lineage_tree(store, artifact))
    for reader in data["read_by"]:
        console.echo(f"  read by {reader['uses']}/{reader['fingerprint']}", "dim")


def _print_panels(artifact: Artifact) -> None:
    """Print the table and waterfall panels of an artifact; the report shows all panels."""
    from launch.report.charts import read_panels
    from pipeline.storage.artifact import OBSERVED

    for panel in read_panels(artifact.path / OBSERVED):
        if panel["type"] == "waterfall":
            columns, lines = ["", panel["unit"]], panel["steps"]
        elif panel["type"] == "table":
            columns, lines = panel["columns"], panel["rows"]
        else:
            continue
        console.echo()
        console.print_line((panel["title"], "bold"))
        numbers = {
            column
            for column, cell in zip(columns, lines[0] if lines else [], strict=False)
            if not isinstance(cell, str)
        }
        table = console.make_table(*columns, right=numbers, flexible=set(columns) - numbers)
        for line in lines[:MAX_ROWS]:
            cells = (cell if isinstance(cell, str) else formatting.number(cell) for cell in line)
            table.add_row(*cells)
        console.print_table(table)
        if len(lines) > MAX_ROWS:
            console.echo(f"  {len(lines) - MAX_ROWS} more rows: see the report", "dim")
    console.echo("")


def lineage_tree(store: Store, artifact: Artifact) -> Tree:
    """Return the tree of all inputs of an artifact; a repeated one is not expanded again."""
    tree = Tree(console.plain_text(("made from", "dim")), guide_style="dim")
    _add_inputs(store, tree, artifact, set())
    return tree


def _add_inputs(store: Store, branch: Tree, artifact: Artifact, expanded: set[str]) -> None:
    for edge, references in artifact.manifest["inputs"].items():
        for reference in references:
            label = console.plain_text(
                (f"{edge} ", "dim"), reference["uses"], " ", (reference["fingerprint"], "cyan")
            )
            parent = store.latest_readable(
                reference["uses"], reference["fingerprint"], reference["digest"]
            )
            if parent is None:
                branch.add(label.append("  deleted", "red"))
            elif parent.digest in expanded:
                branch.add(label.append("  see above", "dim"))
            else:
                expanded.add(parent.digest)
                _add_inputs(store, branch.add(label), parent, expanded)
    for source, digest in artifact.manifest["payload"].get("externals", {}).items():
        cells = ("external source ", "dim"), source, (f"  {digest[:16]}", "cyan")
        branch.add(console.plain_text(*cells))
