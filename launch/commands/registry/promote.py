"""`promote`: register a model and move an alias to it, if its gates pass."""

from __future__ import annotations

from typing import Any

import click

from launch.ui import console, formatting
from launch.ui.options import alias_option, find_run, json_option, model_option, store_option


@click.command()
@click.argument("target", metavar="RUN[:STAGE]")
@model_option
@alias_option
@click.option("--require", multiple=True, metavar="GATE", help="Gate to pass; repeatable.")
@click.option("--dry-run", is_flag=True, help="Run all checks and change nothing.")
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
    """Verify a model, smoke-test it, check the gates, register it and move the alias to it.

    A gate compares STAGE.METRIC with a number or with the model that holds the alias:
    'evaluate.perplexity<20', 'reward.accuracy>=champion+0.01'. Exit code 3: a gate was refused.
    """
    from launch.promotion import model_stage, promote_run, split_target

    name, stage = split_target(target)
    run = find_run(store_path, name)
    stage = stage or model_stage(run)
    record = promote_run(run, stage, model, alias, require, dry_run=dry_run)
    if as_json:
        console.print_json(record)
        return
    _print_gates(record["gates"])
    version = f"version {record['to']}" if record["to"] is not None else "a new version"
    verb = "would become" if dry_run else "is"
    console.echo(f"{run.id}:{stage} {verb} {model}@{alias}, {version}", "bold green")
    if not dry_run:
        console.suggest_command(f'headwater generate {model}@{alias} "…"')


def _print_gates(gates: list[dict[str, Any]]) -> None:
    table = console.make_table("gate", "value", "threshold", "", right=["value", "threshold"])
    for gate in gates:
        threshold = formatting.metric(gate["threshold"])
        mark = "✓ passed" if gate["passed"] else "✗ refused"
        note = f"  {gate['note']}" if gate.get("note") else ""
        table.add_row(gate["gate"], formatting.metric(gate["value"]), threshold, f"{mark}{note}")
    if gates:
        console.print_table(table)
