"""`resume`: continue a run, on this machine or on the cluster that it was submitted to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from launch.driver import check_resumable, execute_run, model_resolver
from launch.ui import console
from launch.ui.options import address_option, find_run, from_option, store_option
from launch.ui.plan_table import print_plan
from launch.ui.working_directory import in_run_directory

if TYPE_CHECKING:
    from pipeline.execution.run import Run


@click.command()
@click.argument("name", metavar="RUN", default="latest")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@from_option
@store_option
@address_option
def resume(
    name: str,
    overrides: tuple[str, ...],
    from_: str | None,
    store_path: str,
    address: str | None,
) -> None:
    """Continue a run where it stopped, with the configuration saved in the store.

    KEY=VALUE or --from creates a new run that names this one as its origin and keeps its --only,
    --from, --rerun and --strict-code. A submitted run continues on its cluster; --address local
    continues it on this machine.
    """
    from launch.cluster.job_record import submitted_cluster
    from launch.source_code import source_hash
    from pipeline.execution.runner import plan_again

    if "=" in name:
        name, overrides = "latest", (name, *overrides)
    run = find_run(store_path, name)
    check_resumable(run, run.store)
    with in_run_directory(run):
        run = derive_run(run, overrides, from_)
        cluster = submitted_cluster(run)
        if cluster and address is None:
            from launch.cluster.job_submission import resubmit

            sys.exit(resubmit(run, cluster))
        if cluster and run.status().state == "pending":
            # External sources may differ from those of the machine that planned the run.
            run.write_plan(plan_again(run, run.spec(), source_hash))
        sys.exit(execute_run(run, address))


def derive_run(run: Run, overrides: tuple[str, ...], from_: str | None = None) -> Run:
    """Return the run itself if nothing changes, else a new run that names it as its origin.

    Raises:
        SpecError: an override is invalid.
    """
    from launch.cluster.job_record import copy_job_record
    from launch.source_code import source_hash
    from pipeline.execution.run import Run
    from pipeline.execution.runner import plan_again
    from pipeline.spec.spec_checker import spec_from_resolved

    source = str(run.folder / "run.yaml")
    spec = spec_from_resolved(run.resolved(), overrides, source)
    if not from_ and spec.resolved == spec_from_resolved(run.resolved(), (), source).resolved:
        return run
    plan = plan_again(run, spec, source_hash, from_, model_resolver(run.store))
    print_plan(plan)
    derived = Run.create(run.store, spec, plan, origin=run.id)
    copy_job_record(run, derived)
    console.echo(f"the configuration changed: new run {derived.id}, continuing {run.id}")
    return derived
