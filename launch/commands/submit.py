"""`submit`: execute a pipeline on a cluster, as one Ray job."""

from __future__ import annotations

import sys
from collections.abc import Iterator
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
    from pipeline.execution.plan import Plan
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
    sees the store. Submitting the same again while it runs attaches to that run: the same pipeline
    from the same directory, with the same sources, models and code.
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
    if not preflight.reachable:
        preflight.require_ready(promotes=spec.promote is not None)
    plan = plan_pipeline(spec, cluster.store)
    package = pack_code(cluster, Path.cwd())
    record = JobRecord(
        str(cluster.path.absolute()), str(Path.cwd()), code=package.name if package else ""
    )
    if run := find_running_duplicate(cluster, spec, plan, record):
        console.echo(f"run {run.id} already executes this pipeline")
        starts = count_driver_starts(run) - run.has_driver()
    else:
        if capacity := print_capacity(preflight, cluster, spec):
            check_resources(spec, plan, cluster.store, capacity)
        print_plan(plan)
        run = Run.create(cluster.store, spec, plan)
        record.write(run)
        submit_job(run, cluster, package)
        starts = 0
    sys.exit(watch_until_done(run, cluster, starts, detach))


def find_running_duplicate(
    cluster: Cluster, spec: Spec, plan: Plan, wanted: JobRecord
) -> Run | None:
    """Return a run that does the same and whose job is pending or running on the cluster.

    Args:
        spec: the pipeline to submit.
        plan: its plan, which has the content of its sources and its models.
        wanted: its cluster, directory and code.
    """
    from launch.cluster.ray_jobs_client import ACTIVE
    from pipeline.execution.run import list_runs

    for run in reversed(list_runs(cluster.store)[-RECENT_RUNS:]):
        record = JobRecord.read(run)
        if record is None or record.cluster != wanted.cluster:
            continue
        if run.status().state in ("pending", "running") and run.resolved() == spec.resolved:
            job = latest_job(run, cluster)
            if job is not None and job["status"] in ACTIVE:
                if not (other := list(_differences(run, plan, record, wanted))):
                    return run
                what = " and ".join(other)
                console.echo(f"run {run.id} executes this pipeline file with other {what}", "dim")
    return None


def _differences(run: Run, plan: Plan, record: JobRecord, wanted: JobRecord) -> Iterator[str]:
    """Yield what differs between a run and a submission of the same pipeline file."""
    if record.root != wanted.root:
        yield f"relative paths (it was submitted from {record.root})"
    prints = [{s.name: s.fingerprint for s in p.stages} for p in (run.plan(), plan)]
    if changed := [name for name, fp in prints[1].items() if prints[0].get(name) != fp]:
        yield f"sources or models ({', '.join(changed)})"
    if record.code != wanted.code:
        yield "code"
