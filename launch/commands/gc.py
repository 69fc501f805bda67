"""`gc`: find and delete artifacts that no recent run and no registered model needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from launch.ui import console, formatting
from launch.ui.options import json_option, open_store, store_flag, store_option


@click.command()
@click.option(
    "--keep",
    default=10,
    show_default=True,
    metavar="N",
    type=click.IntRange(min=0),
    help="Keep the artifacts of the newest N runs.",
)
@click.option("--delete", is_flag=True, help="Delete them. Default: only list them.")
@store_option
@json_option
def gc(keep: int, delete: bool, store_path: str, as_json: bool) -> None:
    """List or delete artifacts not reachable from recent runs or model aliases.

    Artifacts of the last five promotions of each alias are always kept.
    """
    from launch.garbage_collection import collect_garbage

    store = open_store(store_path)
    found = collect_garbage(store, keep, dry=not delete)
    entries: list[dict[str, Any]] = [
        {"path": str(item.path), "bytes": item.size, "why": item.why} for item in found.garbage
    ]
    if as_json:
        console.print_json(
            {"deleted": delete, "kept": found.kept, "bytes": found.size, "garbage": entries}
        )
        return
    if entries:
        titles = ("folder", "size", "reason")
        table = console.make_table(*titles, right=["size"], flexible=["folder", "reason"])
        for entry in entries:
            folder = str(Path(entry["path"]).relative_to(store.root))
            table.add_row(folder, formatting.size(entry["bytes"]), entry["why"])
        console.print_table(table)
    verb = "freed" if delete else "would free"
    size = formatting.size(found.size)
    console.echo(f"{verb} {size} in {len(entries)} folders; {found.kept} artifacts are kept")
    if entries and not delete:
        console.suggest_command(f"headwater gc --keep {keep} --delete{store_flag(store)}")
