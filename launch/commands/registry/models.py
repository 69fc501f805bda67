"""`models`: registered models, their versions, aliases and promotion history."""

from __future__ import annotations

from typing import Any

import click

from launch.ui import console, formatting
from launch.ui.options import json_option, mlflow_uri, open_store, store_option


@click.command()
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--history", is_flag=True, help="List every promotion and rollback.")
@store_option
@json_option
def models(model: str | None, history: bool, store_path: str, as_json: bool) -> None:
    """List registered models with versions, aliases and origin, or their history."""
    from launch.tracking.model_registry import Registry

    registry = Registry(open_store(store_path), mlflow_uri())
    names = [model] if model else [entry["model"] for entry in registry.models()]
    records = [record for name in names for record in registry.history(name)]
    entries = records if history else versions(records)
    if as_json:
        console.print_json(entries)
    elif not entries:
        console.echo("no models are registered")
        console.suggest_command("headwater promote RUN[:STAGE] --model NAME")
    else:
        _print_history(entries) if history else _print_versions(entries)


def versions(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry per version, with the aliases that it holds now."""
    holders: dict[tuple[str, str], int] = {}
    latest: dict[tuple[str, int], dict[str, Any]] = {}
    for record in records:
        holders[record["model"], record["alias"]] = record["to"]
        latest[record["model"], record["to"]] = record
    keys = ("run", "stage", "kind", "uses", "fingerprint", "digest", "path", "metrics", "time")
    return [
        {
            "model": name,
            "version": version,
            "aliases": sorted(a for (m, a), to in holders.items() if (m, to) == (name, version)),
            **{key: record[key] for key in keys},
        }
        for (name, version), record in sorted(latest.items())
    ]


def _print_versions(entries: list[dict[str, Any]]) -> None:
    wide = console.get_console().width >= console.NARROW
    titles = ["model", "version", "aliases", "from", *["fingerprint"] * wide, "since"]
    table = console.make_table(*titles, right=["version"], flexible=["aliases", "from"])
    for entry in entries:
        row = [
            entry["model"],
            str(entry["version"]),
            " ".join(f"@{alias}" for alias in entry["aliases"]),
            f"{entry['run']}:{entry['stage']}",
            *[entry["fingerprint"]] * wide,
            _format_time(entry, wide),
        ]
        table.add_row(*row)
    console.print_table(table)


def _print_history(records: list[dict[str, Any]]) -> None:
    wide = console.get_console().width >= console.NARROW
    titles = ["time", *["user"] * wide, "action", "alias", "from", "to", "run", *["gates"] * wide]
    table = console.make_table(*titles, right=["from", "to"], flexible=["gates", "alias", "run"])
    for record in records:
        row = [
            _format_time(record, wide),
            *[record["user"]] * wide,
            record["action"],
            f"{record['model']}@{record['alias']}",
            "" if record["from"] is None else str(record["from"]),
            str(record["to"]),
            f"{record['run']}:{record['stage']}",
            *["  ".join(gate["gate"] for gate in record.get("gates", []))] * wide,
        ]
        table.add_row(*row)
    console.print_table(table)


def _format_time(record: dict[str, Any], wide: bool) -> str:
    """Return the UTC time of a record, to the minute or to the day."""
    return formatting.to_minute(record["time"])[: None if wide else 10]
