"""`show`: what a run made, or what an artifact is, where it is from and who reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text
from rich.tree import Tree

from launch.run_summary import format_registered
from launch.ui import console, formatting
from launch.ui.options import json_option, open_store, store_option
from pipeline.errors import NotFound

if TYPE_CHECKING:
    from pipeline.execution.run import Run
    from pipeline.storage.artifact import Artifact
    from pipeline.storage.store import Store

SHOWN_ROWS = 30
_FINGERPRINT = re.compile(r"(?:[a-z0-9._-]+/)?[0-9a-f]{6,16}(?:\.\d+)?")


@click.command()
@click.argument("target", metavar="RUN|ARTIFACT", default="latest")
@store_option
@json_option
def show(target: str, store_path: str, as_json: bool) -> None:
    """Show what a run made; or an artifact's files, figures, inputs and readers.

    ARTIFACT is a fingerprint or its beginning, or RUN:STAGE.
    """
    from pipeline.execution.run import Run

    store = open_store(store_path)
    found = find_target(store, target)
    if isinstance(found, Run):
        data = describe_run(found)
        console.print_json(data) if as_json else _show_run(found, data)
    else:
        data = describe_artifact(store, found)
        console.print_json(data) if as_json else _show_artifact(store, found, data)


def find_target(store: Store, target: str) -> Run | Artifact:
    """The run, stage's artifact or artifact of that name.

    Raises:
        NotFound: nothing of that name exists.
    """
    from launch.promotion import artifact_of, split_target
    from pipeline.execution.run import Run

    if ":" in target:
        name, stage = split_target(target)
        return artifact_of(Run.find(store, name), stage)
    if _FINGERPRINT.fullmatch(target):
        try:
            return store.by_fingerprint(target)
        except NotFound:
            if "/" in target:
                raise
    return Run.find(store, target)


def describe_run(run: Run) -> dict[str, Any]:
    """What `show RUN --json` prints: the status, with where each artifact came from."""
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


def _show_run(run: Run, data: dict[str, Any]) -> None:
    status = run.status()
    console.get_console().print(
        Text.assemble((status.pipeline, "bold"), "  ", (run.id, "cyan"), "  "),
        console.format_state(status.state),
    )
    titles = ("stage", "kind", "state", "fingerprint", "size", "took", "figures")
    wide = console.get_console().width >= console.NARROW
    table = console.make_table(
        *titles[: 7 if wide else 6], right=["size", "took"], flexible=["figures"]
    )
    for entry in data["stages"]:
        table.add_row(
            entry["name"],
            entry["kind"],
            console.format_state(entry["state"]),
            entry["fingerprint"],
            formatting.size(entry.get("bytes")),
            formatting.duration(entry["seconds"]),
            *([Text(console.format_metrics(entry["metrics"], 2))] if wide else []),
        )
    console.print_table(table)
    if status.origin:
        console.echo(f"goes on from {status.origin}", "dim")
    if status.registered:
        console.echo(f"registered {format_registered(status.registered)}")
    console.echo(f"folder {run.folder}", "dim")


def describe_artifact(store: Store, artifact: Artifact) -> dict[str, Any]:
    """What `show ARTIFACT --json` prints: its manifest, its folder, and who reads it."""
    readers = [
        {"uses": reader.uses, "fingerprint": reader.fingerprint}
        for reader in _readers(store, artifact)
    ]
    return {**artifact.manifest, "path": str(artifact.path), "read_by": readers}


def _readers(store: Store, artifact: Artifact) -> Iterator[Artifact]:
    """Artifacts that were made from this one."""
    for other in store.artifacts():
        references = (ref for refs in other.manifest["inputs"].values() for ref in refs)
        if any(ref["digest"] == artifact.digest for ref in references):
            yield other


def _show_artifact(store: Store, artifact: Artifact, data: dict[str, Any]) -> None:
    manifest = artifact.manifest
    code = manifest["code"]
    dirty = ", changed since" if code.get("dirty") else ""
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
        console.get_console().print(Text(f"  {name:<12}", "dim") + Text(value), soft_wrap=True)
    for name, number in artifact.metrics.items():
        console.get_console().print(Text(f"  {name:<24}", "dim") + Text(formatting.metric(number)))
    _show_tables(artifact)
    console.get_console().print(lineage(store, artifact))
    for reader in data["read_by"]:
        console.echo(f"  read by {reader['uses']}/{reader['fingerprint']}", "dim")


def _show_tables(artifact: Artifact) -> None:
    """The tables and the waterfalls that its stage left for people, as the report has them."""
    from launch.report.charts import panels
    from pipeline.storage.artifact import OBSERVED

    for panel in panels(artifact.path / OBSERVED):
        if panel["type"] == "waterfall":
            columns, lines = ["", panel["unit"]], panel["steps"]
        elif panel["type"] == "table":
            columns, lines = panel["columns"], panel["rows"]
        else:
            continue
        console.echo(f"\n{panel['title']}", "bold")
        numbers = {
            column
            for column, cell in zip(columns, lines[0] if lines else [], strict=False)
            if isinstance(cell, int | float)
        }
        table = console.make_table(*columns, right=numbers, flexible=set(columns) - numbers)
        shown = [[_cell(cell) for cell in line] for line in lines[:SHOWN_ROWS]]
        console.print_table(console.add_rows(table, shown))
        if len(lines) > SHOWN_ROWS:
            console.echo(f"  {len(lines) - SHOWN_ROWS} more: see the report", "dim")
    console.echo("")


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else formatting.number(value)


def lineage(store: Store, artifact: Artifact) -> Tree:
    """Everything that an artifact was made from, as a tree; what was drawn before is a line."""
    tree = Tree(Text("made from", style="dim"), guide_style="dim")
    _grow(store, tree, artifact, set())
    return tree


def _grow(store: Store, branch: Tree, artifact: Artifact, drawn: set[str]) -> None:
    for edge, references in artifact.manifest["inputs"].items():
        for reference in references:
            label = Text.assemble(
                (f"{edge} ", "dim"), reference["uses"], " ", (reference["fingerprint"], "cyan")
            )
            parent = store.latest_readable(
                reference["uses"], reference["fingerprint"], reference["digest"]
            )
            if parent is None:
                branch.add(label.append("  gone", "red"))
            elif parent.digest in drawn:
                branch.add(label.append("  see above", "dim"))
            else:
                drawn.add(parent.digest)
                _grow(store, branch.add(label), parent, drawn)
    for source, digest in artifact.manifest["payload"].get("externals", {}).items():
        branch.add(Text.assemble(("from outside ", "dim"), source, (f"  {digest[:16]}", "cyan")))
