"""`submit`: a run as one job of a cluster, with everything that matters kept in the store.

The run's folder is made here, then the job is one command on the shipped code:

    python -m launch.cli resume RUN --store STORE --address auto

so the job, a second job after the head was lost, and a person at a terminal all do the same.
`job.json` in the run's folder says where it went. The job's id is the run's id; what was submitted
twice exists once.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launch.cluster.job_watcher import drives, stay
from launch.cluster.ray_jobs_client import ACTIVE
from launch.commands.plan import make_plan, show_plan
from launch.commands.status import OVER
from launch.driver import WIND_UP
from launch.ui import console, formatting
from launch.ui.options import store_flag, store_option
from pipeline.errors import HeadwaterError, Interrupted
from pipeline.storage.atomic_io import read_json, write_atomic

if TYPE_CHECKING:
    from launch.cluster.code_package import Package
    from launch.cluster.config import Cluster
    from launch.cluster.preflight import Answers
    from launch.cluster.ray_jobs_client import Capacity, Jobs
    from pipeline.execution.run import Run
    from pipeline.plan import Plan
    from pipeline.spec.pipeline_spec import Spec

RECORD = "job.json"
STOP_WAIT = 120  # seconds between a job's SIGTERM and SIGKILL; Ray's own 3 lose the checkpoint


@click.command()
@click.argument("config", metavar="CONFIG")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--cluster", "name", required=True, metavar="NAME", help="Of configs/clusters.")
@click.option("--detach", is_flag=True, help="Do not stay to watch.")
@store_option
def submit(
    config: str, overrides: tuple[str, ...], name: str, detach: bool, store_path: str
) -> None:
    """Ship the tracked code and a pipeline to a cluster, and watch it run there.

    Ctrl-C detaches, the run goes on; status, logs, cancel and resume work from any shell that
    sees the store. The same command typed again while it runs comes back to it.
    """
    from launch.cluster.config import load_cluster
    from launch.cluster.preflight import ask, resources
    from pipeline.spec.pipeline_spec import load

    cluster = load_cluster(name, store_path)
    spec = load(config, overrides)
    answers = ask(cluster)
    if answers.reachable and (run := already(cluster, spec)):
        console.say(f"run {run.id} does this already")
        before = drives(run) - run.driven()
    else:
        capacity = welcome(answers, cluster, spec)
        plan = make_plan(spec, cluster.store)
        if capacity:
            resources(spec, plan, cluster.store, capacity)
        show_plan(plan)
        package = packed(cluster, Path.cwd())
        run = _create(cluster, spec, plan)
        send(run, cluster, package)
        before = 0
    sys.exit(stay(run, cluster, before, detach))


def welcome(answers: Answers, cluster: Cluster, spec: Spec) -> Capacity | None:
    """Say what the cluster has.

    Raises:
        Checks: what is in the way, before anything exists.
    """
    capacity, warnings = answers.accept(promotes=spec.promote is not None)
    for warning in warnings:
        console.say(f"warning: {warning}", "yellow", stderr=True)
    console.say(f"{cluster.name} answers at {cluster.address}{_offer(capacity)}", "dim")
    return capacity


def _offer(capacity: Capacity | None) -> str:
    if capacity is None:
        return ""
    return f": {capacity.cpus:g} CPUs and {capacity.gpus:g} GPUs on {len(capacity.nodes)} nodes"


def packed(cluster: Cluster, folder: Path) -> Package | None:
    """The tracked files of the repository around a folder; None if the cluster has the code."""
    from launch.cluster.code_package import pack, repository

    if cluster.file.code == "installed":
        return None
    package = pack(repository(folder))
    size = formatting.size(len(package.content))
    console.say(f"packed {package.files} tracked files, {size}", "dim")
    return package


def _create(cluster: Cluster, spec: Spec, plan: Plan) -> Run:
    from pipeline.execution.run import Run

    run = Run.create(cluster.store, spec, plan)
    _note(run, {"cluster": str(cluster.path.absolute()), "root": str(Path.cwd()), "jobs": []})
    return run


def already(cluster: Cluster, spec: Spec) -> Run | None:
    """A run of the very same pipeline that is on its way on this cluster."""
    from pipeline.execution.run import runs

    for run in reversed(runs(cluster.store)[-50:]):
        record = _record(run)
        if not record or record["cluster"] != str(cluster.path.absolute()):
            continue
        if run.status().state in ("pending", "running") and run.resolved() == spec.resolved:
            job = last_job(run, cluster)
            if job is not None and job["status"] in ACTIVE:
                return run
    return None


def send(run: Run, cluster: Cluster, package: Package | None) -> None:
    """Make the run a job; a job of it that is on its way is left alone.

    Raises:
        Failure: the head refused; the run's folder stays, and `resume` tries again.
        Interrupted: somebody cancelled it meanwhile.
    """
    jobs = cluster.jobs()
    record = _record(run)
    name, active = _next_id(run, jobs)
    if active:
        return
    if run.status().state in OVER:
        run.cancel_file.unlink(missing_ok=True)
        run.append("run.resubmitted")  # from here on whoever cancels it means this job
    if package and not jobs.has_package(package.name):
        jobs.upload(package.name, package.content)
    if run.cancel_file.exists():
        raise _cancelled(run)
    _note(run, {**record, "jobs": [*record["jobs"], name]})
    try:
        jobs.submit(name, entrypoint(run, cluster), _runtime(cluster, package), _labels(run))
    except HeadwaterError as error:
        error.remedy = error.remedy or f"headwater resume {run.id}{store_flag(run.store)}"
        raise


def _cancelled(run: Run) -> Interrupted:
    if run.status().state not in OVER:
        run.append("run.finished", state="cancelled")
    return Interrupted(
        f"run {run.id} was cancelled before its job was sent",
        remedy=f"headwater resume {run.id}{store_flag(run.store)}",
    )


def _next_id(run: Run, jobs: Jobs) -> tuple[str, bool]:
    """The run's id, `<id>-2` after a job of that id has ended, and so on; whether it is active."""
    count = 1
    while True:
        name = run.id if count == 1 else f"{run.id}-{count}"
        job = _settled(run, jobs, name)
        if job is None or job["status"] in ACTIVE:
            return name, job is not None
        count += 1


def _settled(run: Run, jobs: Jobs, name: str) -> dict[str, Any] | None:
    """A job; one whose run is over already, and that only winds up, is waited for."""
    deadline = time.monotonic() + WIND_UP
    while True:
        job = jobs.get(name)
        winding = job is not None and job["status"] in ACTIVE and run.status().state in OVER
        if not winding or time.monotonic() > deadline:
            return job
        time.sleep(0.2)


def entrypoint(run: Run, cluster: Cluster) -> str:
    """What the job executes."""
    words = [cluster.file.python, "-m", "launch.cli", "resume", run.id]
    words += ["--store", str(run.store.root), "--address", "auto"]
    return shlex.join(words)


def _runtime(cluster: Cluster, package: Package | None) -> dict[str, Any]:
    """The job's environment. Secrets are not in it: stages find them where they run, by name."""
    names = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    if cluster.mlflow:
        names["MLFLOW_TRACKING_URI"] = cluster.mlflow
    if package and package.commit:
        names["HEADWATER_COMMIT"] = package.commit  # what is shipped is no checkout
    code = {"working_dir": f"gcs://{package.name}"} if package else {}
    return {**code, "env_vars": names}


def _labels(run: Run) -> dict[str, str]:
    secrets = ",".join(sorted(run.secrets()))
    return {"run": run.id, "pipeline": run.status().pipeline, "secrets": secrets}


# --- what other commands ask ---------------------------------------------------------------------


def submitted_to(run: Run) -> str | None:
    """The file of the cluster that a run was submitted to; None if it was not."""
    record = _record(run)
    return str(record["cluster"]) if record else None


def carry_over(run: Run, made: Run) -> None:
    """What goes on from a submitted run belongs to the same cluster."""
    if record := _record(run):
        _note(made, {**record, "jobs": []})


def resubmit(run: Run, cluster_file: str) -> int:
    """Make a run that stopped a new job of its cluster, and watch it.

    Returns:
        The exit code.
    """
    from launch.cluster.config import load_cluster
    from launch.cluster.preflight import ask, resources

    cluster = load_cluster(cluster_file, str(run.store.root))
    spec = run.spec()
    if capacity := welcome(ask(cluster), cluster, spec):
        resources(spec, run.plan(), run.store, capacity)
    root, before = Path(_record(run)["root"]), drives(run)
    send(run, cluster, packed(cluster, root if root.is_dir() else Path.cwd()))
    return stay(run, cluster, before)


def job_is_gone(run: Run, cluster_file: str, now: bool) -> bool | None:
    """Whether no job will take a submitted run up; None while the head knows of none.

    Args:
        now: end a job that is on its way.

    Raises:
        Failure: the head does not answer; its job may still begin.
    """
    from launch.cluster.config import load_cluster
    from launch.cluster.ray_jobs_client import Unreachable

    cluster = load_cluster(cluster_file, str(run.store.root))
    try:
        job = last_job(run, cluster)
        if job is None:
            return None
        if job["status"] in ACTIVE and now:
            cluster.jobs().stop(job["submission_id"])
    except Unreachable as error:
        again = f"headwater cancel {run.id}{store_flag(run.store)}"
        error.remedy = f"{again}   (when the head is back; a job that begins before stops at once)"
        raise
    return now or job["status"] not in ACTIVE


def last_job(run: Run, cluster: Cluster) -> dict[str, Any] | None:
    """What the head knows of a run's newest job; None if it knows nothing."""
    names = _record(run).get("jobs", [])
    return cluster.jobs().get(names[-1]) if names else None


def _record(run: Run) -> dict[str, Any]:
    return read_json(run.folder / RECORD, {})


def _note(run: Run, record: dict[str, Any]) -> None:
    write_atomic(run.folder / RECORD, json.dumps(record) + "\n")
