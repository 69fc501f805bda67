"""`promote`, `rollback` and `models`: which model has which name, since when, and why."""

from __future__ import annotations

from typing import Any

import click

from launch.ui import console, formatting
from launch.ui.options import find_run, json_option, mlflow_uri, open_store, store_option

model_option = click.option("--model", required=True, metavar="NAME", help="The registered name.")
alias_option = click.option("--alias", default="champion", show_default=True, metavar="ALIAS")


@click.command()
@click.argument("target", metavar="RUN[:STAGE]")
@model_option
@alias_option
@click.option("--require", multiple=True, metavar="GATE", help="A gate; repeatable.")
@click.option("--dry-run", is_flag=True, help="Check everything, change nothing.")
@store_option
@json_option
def promote(
    target: str,
    model: str,
    alias: str,
    require: tuple[str, ...],
    dry_run: bool,
    store_path: str,
    as_json: bool,
) -> None:
    """Verify a model, try it, check the gates, register it, then move the alias.

    A gate is STAGE.METRIC against a number or against the model that has the alias now:
    'evaluate.perplexity<20', 'reward.accuracy>=champion+0.01'. Exit code 3: a gate refused.
    """
    from launch.promotion import model_stage, promote_run, split_target

    name, stage = split_target(target)
    run = find_run(store_path, name)
    stage = stage or model_stage(run)
    record = promote_run(run, stage, model, alias, require, dry_run=dry_run)
    if as_json:
        console.print_json(record)
        return
    _show_gates(record)
    version = f"version {record['to']}" if record["to"] is not None else "a new version"
    verb = "would become" if dry_run else "is"
    console.say(f"{run.id}:{stage} {verb} {model}@{alias}, {version}", "bold green")
    if not dry_run:
        console.advise(f'headwater generate {model}@{alias} "…"')


def _show_gates(record: dict[str, Any]) -> None:
    table = console.table("gate", "value", "threshold", "", right=["value", "threshold"])
    for line in record["gates"]:
        bound = "" if line["threshold"] is None else formatting.figure(line["threshold"])
        mark = ("✓ passed", "green") if line["passed"] else ("✗ refused", "red")
        note = f"  {line['note']}" if line.get("note") else ""
        table.add_row(line["gate"], formatting.figure(line["value"]), bound, f"{mark[0]}{note}")
    if record["gates"]:
        console.show(table)


@click.command()
@model_option
@alias_option
@click.option("--to", metavar="VERSION", help="This version, instead of the one before.")
@store_option
@json_option
def rollback(model: str, alias: str, to: str | None, store_path: str, as_json: bool) -> None:
    """Give an alias back to the version that had it before."""
    from launch.tracking.model_registry import Registry

    record = Registry(open_store(store_path), mlflow_uri()).rollback(model, alias, to)
    if as_json:
        console.print_json(record)
        return
    console.say(
        f"{model}@{alias} is version {record['to']} again (was {record['from']})", "bold green"
    )
    console.advise("headwater models --history")


@click.command()
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--history", is_flag=True, help="Every promotion and rollback.")
@store_option
@json_option
def models(model: str | None, history: bool, store_path: str, as_json: bool) -> None:
    """List registered models: versions, aliases, where they come from; or their history."""
    from launch.tracking.model_registry import Registry

    registry = Registry(open_store(store_path), mlflow_uri())
    names = [model] if model else [entry["model"] for entry in registry.models()]
    records = [record for name in names for record in registry.history(name)]
    lines = records if history else newest(records)
    if as_json:
        console.print_json(lines)
    elif not lines:
        console.say("no model is registered yet")
        console.advise("headwater promote RUN[:STAGE] --model NAME")
    else:
        console.show(_history(lines) if history else _versions(lines))


def newest(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a version, with the aliases that it has now."""
    holders: dict[tuple[str, str], int] = {}
    versions: dict[tuple[str, int], dict[str, Any]] = {}
    for record in records:
        holders[record["model"], record["alias"]] = record["to"]
        versions[record["model"], record["to"]] = record
    keys = ("run", "stage", "kind", "uses", "fingerprint", "digest", "path", "metrics", "time")
    return [
        {
            "model": name,
            "version": version,
            "aliases": sorted(a for (m, a), to in holders.items() if (m, to) == (name, version)),
            **{key: record[key] for key in keys},
        }
        for (name, version), record in sorted(versions.items())
    ]


def _versions(lines: list[dict[str, Any]]) -> Any:
    wide = console.screen().width >= console.NARROW
    titles = ["model", "version", "aliases", "from", *["fingerprint"] * wide, "since"]
    table = console.table(*titles, right=["version"], flexible=["aliases", "from"])
    return console.rows(
        table,
        (
            (
                line["model"],
                str(line["version"]),
                " ".join(f"@{alias}" for alias in line["aliases"]),
                f"{line['run']}:{line['stage']}",
                *[line["fingerprint"]] * wide,
                _when(line, wide),
            )
            for line in lines
        ),
    )


def _history(lines: list[dict[str, Any]]) -> Any:
    wide = console.screen().width >= console.NARROW
    titles = ["time", *["who"] * wide, "what", "alias", "from", "to", "run", *["gates"] * wide]
    table = console.table(*titles, right=["from", "to"], flexible=["gates", "alias", "run"])
    return console.rows(
        table,
        (
            (
                _when(line, wide),
                *[line["user"]] * wide,
                line["action"],
                f"{line['model']}@{line['alias']}",
                "" if line["from"] is None else str(line["from"]),
                str(line["to"]),
                f"{line['run']}:{line['stage']}",
                *["  ".join(gate["gate"] for gate in line.get("gates", []))] * wide,
            )
            for line in lines
        ),
    )


def _when(line: dict[str, Any], wide: bool) -> str:
    """UTC, to the minute or to the day."""
    return formatting.minute(line["time"])[: None if wide else 10]
