"""`rollback`: move the alias of a registered model back to an earlier version."""

from __future__ import annotations

import click

from launch.ui import console
from launch.ui.options import (
    alias_option,
    json_option,
    mlflow_uri,
    model_option,
    open_store,
    store_option,
)


@click.command()
@model_option
@alias_option
@click.option("--to", metavar="VERSION", help="Target version. Default: the previous one.")
@store_option
@json_option
def rollback(model: str, alias: str, to: str | None, store_path: str, as_json: bool) -> None:
    """Move an alias back to the version that held it before."""
    from launch.tracking.model_registry import Registry

    record = Registry(open_store(store_path), mlflow_uri()).rollback(model, alias, to)
    if as_json:
        console.print_json(record)
        return
    console.echo(
        f"{model}@{alias} is version {record['to']} again (was {record['from']})", "bold green"
    )
    console.suggest_command("headwater models --history")
