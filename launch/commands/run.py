"""`run`: execute a pipeline, on this machine or on a running Ray cluster."""

from __future__ import annotations

import sys

import click

from launch.driver import LOCAL_ADDRESS, execute_run, plan_pipeline
from launch.plan_warnings import add_warnings, gpu_warnings, require_local_gpus
from launch.ui.options import address_option, open_store, scope_options, store_option
from launch.ui.plan_table import print_plan


@click.command()
@click.argument("config", metavar="CONFIG")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@store_option
@address_option
@scope_options
@click.option("--dry-run", is_flag=True, help="Print the plan and exit.")
def run(
    config: str,
    overrides: tuple[str, ...],
    store_path: str,
    address: str | None,
    from_: str | None,
    only: str | None,
    rerun: tuple[str, ...],
    strict_code: bool,
    dry_run: bool,
) -> None:
    """Run a pipeline file. Stages whose artifacts are in the store are not run again.

    KEY=VALUE overrides a key of the file, as in `gpt.train.lr=3e-4`. Ctrl-C stops at the next
    checkpoint, within 30 s; a second Ctrl-C stops at once. `headwater resume` continues.
    """
    from pipeline.execution.run import Run
    from pipeline.spec.spec_checker import load_spec

    spec = load_spec(config, overrides)
    store = open_store(store_path)
    plan = plan_pipeline(spec, store, from_, only, rerun, strict_code)
    is_local = address in (None, LOCAL_ADDRESS)
    print_plan(add_warnings(plan, gpu_warnings(plan, spec)) if dry_run and is_local else plan)
    if not dry_run:
        if is_local:
            require_local_gpus(plan, spec)
        sys.exit(execute_run(Run.create(store, spec, plan), address))
