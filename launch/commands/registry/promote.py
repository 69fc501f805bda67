"""`promote`: register a model and move an alias to it, if its gates pass."""

from __future__ import annotations

from typing import Any

import click

from launch.ui import console, formatting
from launch.ui.options import find_run, json_option, store_flag, store_option


@click.command()
@click.argument("target", metavar="RUN[:STAGE]")
@click.option("--model", metavar="NAME", help="Registered model name.  [default: pipeline file's]")
@click.option("--alias", metavar="ALIAS", help="Model alias.  [default: pipeline file's, champion]")
@click.option(
    "--require",
    multiple=True,
    metavar="GATE",
    help="Gate to pass; repeatable.  [default: pipeline file's]",
)
@click.option("--dry-run", is_flag=True, help="Run all checks and change nothing.")
@store_option
@json_option
def promote(
    target: str,
    model: str | None,
    alias: str | None,
    require: tuple[str, ...],
    dry_run: bool,
    store_path: str,
    as_json: bool,
) -> None:
    """Verify a model, smoke-test it, check the gates, register it and move the alias to it.

    What is not given is that of the `promote` section of the run's pipeline file; the gates too,
    unless another stage or model is promoted.

    A gate compares STAGE.METRIC with a number or with the model that holds the alias:
    'evaluate.perplexity<20', 'reward.accuracy>=champion+0.01'. Exit code 3: a gate was refused.
    """
    from launch.promotion import promote_run, resolve_promotion, split_target

    name, stage = split_target(target)
    run = find_run(store_path, name)
    wanted = resolve_promotion(run, stage, model, alias, require)
    record = promote_run(run, wanted, dry_run=dry_run)
    if as_json:
        console.print_json(record)
        return
    _print_gates(record["gates"])
    version = f"version {record['to']}" if record["to"] is not None else "a new version"
    label = f"{wanted.model}@{wanted.alias}"
    verb = "would become" if dry_run else "is"
    console.echo(f"{run.id}:{wanted.stage} {verb} {label}, {version}", "bold green")
    if not dry_run:
        console.suggest_command(f'headwater generate {label} "…"{store_flag(run.store)}')


def _print_gates(gates: list[dict[str, Any]]) -> None:
    table = console.make_table("gate", "value", "threshold", "", right=["value", "threshold"])
    for gate in gates:
        threshold = formatting.metric(gate["threshold"])
        mark = "✓ passed" if gate["passed"] else "✗ refused"
        note = f"  {gate['note']}" if gate.get("note") else ""
        table.add_row(gate["gate"], formatting.metric(gate["value"]), threshold, f"{mark}{note}")
    if gates:
        console.print_table(table)
