"""`verify` and `gc`: whether what is stored is what was published, and what can go."""

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
@click.option("--all", "everything", is_flag=True, help="Every artifact of the store.")
@store_option
@json_option
def verify(target: str, everything: bool, store_path: str, as_json: bool) -> None:
    """Read every byte of the artifacts of a run (or of all) and compare it with what was published.

    A damaged artifact is put aside, so that nothing reads it and the next run makes it again.
    """
    store = open_store(store_path)
    folders = list(store.folders() if everything else _folders(store, target))
    lines = [_verified(store, folder) for folder in folders]
    bad = [line for line in lines if line["problems"]]
    if as_json:
        console.print_json(lines)
    else:
        _show_verified(lines, bad)
    if bad:
        if not as_json:
            for run in dict.fromkeys(_remaker(store, line["fingerprint"]) for line in bad):
                console.advise(f"headwater resume {run}{store_flag(store)}", "makes it again")
        sys.exit(1)


def _remaker(store: Store, fingerprint: str) -> str:
    """The newest run that needs an artifact, whose manifest may be lost."""
    from pipeline.execution.run import runs

    for run in reversed(runs(store)):
        if any(stage.fingerprint == fingerprint for stage in run.status().stages):
            return run.id
    return "RUN"


def _folders(store: Store, target: str) -> Iterator[Path]:
    from launch.commands.show import find_target
    from pipeline.execution.run import Run

    found = find_target(store, target)
    if not isinstance(found, Run):
        yield found.path
        return
    for stage in found.status().stages:
        if stage.path:
            yield Path(stage.path)


def _verified(store: Store, folder: Path) -> dict[str, Any]:
    problems = store.verify(folder)
    line: dict[str, Any] = {
        "uses": folder.parent.name,
        "fingerprint": folder.name[:16],
        "path": str(folder),
        "files": 0,
        "bytes": 0,
        "problems": problems,
    }
    if problems:
        store.quarantine(folder, "; ".join(problems))
        return line
    from pipeline.storage.artifact import Artifact

    artifact = Artifact.read(folder)
    return {**line, "files": len(artifact.manifest["files"]), "bytes": artifact.size}


def _show_verified(lines: list[dict[str, Any]], bad: list[dict[str, Any]]) -> None:
    for line in bad:
        console.say(f"✗ {line['uses']}/{line['fingerprint']}", "red")
        for problem in line["problems"]:
            console.say(f"    {problem}")
        console.say("    put aside; the next run makes it again", "dim")
    files, size = sum(line["files"] for line in lines), sum(line["bytes"] for line in lines)
    sound = len(lines) - len(bad)
    console.say(
        f"{sound} of {len(lines)} artifacts are sound: {files} files, {formatting.size(size)}",
        "red" if bad else "green",
    )


@click.command()
@click.option(
    "--keep",
    default=10,
    show_default=True,
    metavar="N",
    type=click.IntRange(min=0),
    help="Runs whose artifacts stay, the newest.",
)
@click.option("--delete", is_flag=True, help="Delete it; without this nothing is touched.")
@store_option
@json_option
def gc(keep: int, delete: bool, store_path: str, as_json: bool) -> None:
    """Find what neither the newest runs nor any alias of a model can reach.

    What the last five promotions of each alias need always stays.
    """
    store = open_store(store_path)
    found = store.gc(keep, dry=not delete)
    lines: list[dict[str, Any]] = [
        {"path": str(item.path), "bytes": item.size, "why": item.why} for item in found.garbage
    ]
    if as_json:
        console.print_json(
            {"deleted": delete, "kept": found.kept, "bytes": found.size, "garbage": lines}
        )
        return
    if lines:
        table = console.table("folder", "size", "why", right=["size"], flexible=["folder", "why"])
        relative = ((Path(line["path"]).relative_to(store.root), line) for line in lines)
        console.show(
            console.rows(
                table,
                ((str(p), formatting.size(line["bytes"]), line["why"]) for p, line in relative),
            )
        )
    verb = "freed" if delete else "would free"
    console.say(
        f"{verb} {formatting.size(found.size)} in {len(lines)} folders; {found.kept} artifacts stay"
    )
    if lines and not delete:
        console.advise(f"headwater gc --keep {keep} --delete{store_flag(store)}")
