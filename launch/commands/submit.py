"""`submit`: execute a pipeline on a cluster, as one Ray job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launch.cluster.job_record import JobRecord, latest_job
from launch.driver import plan_pipeline
from launch.ui import console
from launch.ui.options import store_option
from launch.ui.plan_table import print_plan

if TYPE_CHECKING:
    from launch.cluster.config import Cluster
    from pipeline.execution.run import Run
    from pipeline.spec.pipeline_spec import Spec

RECENT_RUNS = 50  # runs of the store that are compared with a new submission


@click.command()
@click.argument("config", metavar="CONFIG")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--cluster",
    "name",
    required=True,
    metavar="NAME",
    help="Cluster, a file of configs/clusters (or its path).",
)
@click.option("--detach", is_flag=True, help="Return once the job is submitted.")
@store_option
def submit(
    config: str, overrides: tuple[str, ...], name: str, detach: bool, store_path: str
) -> None:
    """Submit a pipeline and the tracked code to a cluster, and follow the run.

    Ctrl-C detaches and the run continues; status, logs, cancel and resume work from any shell that
    sees the store. Submitting the same pipeline again while it runs attaches to that run.
    """
    from launch.cluster.config import load_cluster
    from launch.cluster.job_submission import pack_code, print_capacity, submit_job
    from launch.cluster.job_watcher import count_driver_starts, watch_until_done
    from launch.cluster.preflight import check_resources, run_preflight
    from pipeline.execution.run import Run
    from pipeline.spec.spec_checker import load_spec

    cluster = load_cluster(name, store_path)
    spec = load_spec(config, overrides)
    preflight = run_preflight(cluster)
    if preflight.reachable and (run := find_running_duplicate(cluster, spec)):
        console.echo(f"run {run.id} already executes this pipeline")
        starts = count_driver_starts(run) - run.has_driver()
    else:
        capacity = print_capacity(preflight, cluster, spec)
        plan = plan_pipeline(spec, cluster.store)
        if capacity:
            check_resources(spec, plan, cluster.store, capacity)
        print_plan(plan)
        package = pack_code(cluster, Path.cwd())
        run = Run.create(cluster.store, spec, plan)
        JobRecord(str(cluster.path.absolute()), str(Path.cwd())).write(run)
        submit_job(run, cluster, package)
        starts = 0
    sys.exit(watch_until_done(run, cluster, starts, detach))


def find_running_duplicate(cluster: Cluster, spec: Spec) -> Run | None:
    """Return a run of the same pipeline whose job is pending or running on the cluster."""
    from launch.cluster.ray_jobs_client import ACTIVE
    from pipeline.execution.run import list_runs

    for run in reversed(list_runs(cluster.store)[-RECENT_RUNS:]):
        record = JobRecord.read(run)
        if record is None or record.cluster != str(cluster.path.absolute()):
            continue
        if run.status().state in ("pending", "running") and run.resolved() == spec.resolved:
            job = latest_job(run, cluster)
            if job is not None and job["status"] in ACTIVE:
                return run
    return None
