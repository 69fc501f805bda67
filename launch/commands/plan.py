"""`plan`: which stages a run would execute, why, and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from launch.driver import plan_pipeline
from launch.plan_warnings import add_warnings, gpu_warnings
from launch.ui import console
from launch.ui.options import json_option, open_store, scope_options, store_option
from launch.ui.plan_table import print_plan

if TYPE_CHECKING:
    from pipeline.execution.plan import Plan
    from pipeline.storage.store import Store

KEYS = ("name", "uses", "verdict", "reason", "kind", "fingerprint", "needs", "estimate", "warnings")


@click.command()
@click.argument("config", metavar="CONFIG")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@store_option
@scope_options
@json_option
def plan(
    config: str,
    overrides: tuple[str, ...],
    store_path: str,
    from_: str | None,
    only: str | None,
    rerun: tuple[str, ...],
    strict_code: bool,
    as_json: bool,
) -> None:
    """Show which stages are cached, resume or run, why, and what they cost.

    Starts nothing and writes nothing.
    """
    from pipeline.spec.spec_checker import load_spec

    store = open_store(store_path)
    spec = load_spec(config, overrides)
    found = plan_pipeline(spec, store, from_, only, rerun, strict_code)
    result = add_warnings(found, gpu_warnings(found, spec))
    if as_json:
        console.print_json(describe_plan(result, store))
    else:
        print_plan(result)


def describe_plan(plan: Plan, store: Store) -> dict[str, Any]:
    """Return what `plan --json` prints."""
    stages = [{key: stage.get(key) for key in KEYS} for stage in plan.to_json()["stages"]]
    return {"pipeline": plan.pipeline, "store": str(store.root), "stages": stages}
