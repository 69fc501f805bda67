"""Submits a run as a Ray job. The store keeps everything that matters.

The run's folder is created first; the job is then one command on the uploaded code:

    python -m launch.cli resume RUN --store STORE --address auto

so the first job, a later job after the head was lost, and a user at a terminal all do the same.
The job's id is derived from the run's id, so that submitting twice starts one job.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.cluster.job_record import JobRecord
from launch.cluster.job_watcher import count_driver_starts, watch_until_done
from launch.cluster.ray_jobs_client import ACTIVE
from launch.driver import FINALIZE_SECONDS
from launch.ui import console, formatting
from launch.ui.options import store_flag
from pipeline.errors import HeadwaterError, Interrupted, UserError
from pipeline.status import TERMINAL_STATES

if TYPE_CHECKING:
    from launch.cluster.code_package import CodePackage
    from launch.cluster.config import Cluster
    from launch.cluster.preflight import PreflightResult
    from launch.cluster.ray_jobs_client import RayJobsClient
    from pipeline.execution.resources import Resources
    from pipeline.execution.run import Run
    from pipeline.spec.pipeline_spec import Spec

STOP_WAIT = 120  # seconds between a job's SIGTERM and SIGKILL; Ray's 3 s lose the checkpoint


def print_capacity(preflight: PreflightResult, cluster: Cluster, spec: Spec) -> list[Resources]:
    """Print warnings and the resources of the cluster; return those of each node if known.

    Raises:
        PreflightError: all problems that prevent the submission.
    """
    from pipeline.execution.resources import Resources

    capacity, warnings = preflight.require_ready(promotes=spec.promote is not None)
    for warning in warnings:
        console.echo(f"warning: {warning}", "yellow", stderr=True)
    offer = ""
    if capacity:
        offer = f": {sum(capacity, Resources(0))} on {len(capacity)} nodes"
    console.echo(f"connected to {cluster.name} at {cluster.address}{offer}", "dim")
    return capacity


def pack_code(cluster: Cluster, folder: Path) -> CodePackage | None:
    """Pack the tracked files of the repository around a folder; None if the cluster has the
    code."""
    from launch.cluster.code_package import pack, repository_root

    if cluster.file.code == "installed":
        return None
    package = pack(repository_root(folder))
    size = formatting.size(len(package.content))
    console.echo(f"packed {package.files} tracked files, {size}", "dim")
    return package


def submit_job(run: Run, cluster: Cluster, package: CodePackage | None) -> None:
    """Submit a run as a job, unless a job of it is already pending or running.

    Raises:
        UserError: that job has other code.
        Failure: the head refused; the run's folder stays, and `resume` tries again.
        Interrupted: the run was cancelled meanwhile.
    """
    jobs = cluster.jobs()
    record = JobRecord.read(run)
    assert record is not None
    job_id, active = _next_job_id(run, jobs)
    code = package.name if package else ""
    if active and record.code != code:
        raise UserError(
            f"the job {job_id} of run {run.id} is active with other code",
            where=cluster.address,
            remedy=f"headwater cancel {run.id}{store_flag(run.store)}, then resume it",
        )
    if active:
        return
    if run.status().state in TERMINAL_STATES:
        run.cancel_file.unlink(missing_ok=True)
        run.append("run.resubmitted")  # a later cancellation refers to this job
    if package and not jobs.has_package(package.name):
        jobs.upload(package.name, package.content)
    resume = f"headwater resume {run.id}{store_flag(run.store)}"
    if run.cancel_file.exists():
        if run.status().state not in TERMINAL_STATES:
            run.append("run.finished", state="cancelled")
        raise Interrupted(f"run {run.id} was cancelled before submission", remedy=resume)
    replace(record, jobs=(*record.jobs, job_id), code=code).write(run)
    metadata = {
        "run": run.id,
        "pipeline": run.status().pipeline,
        "secrets": ",".join(sorted(run.secrets())),
    }
    try:
        jobs.submit(job_id, entrypoint(run, cluster), _runtime_env(cluster, package), metadata)
    except HeadwaterError as error:
        error.remedy = error.remedy or resume
        raise


def _next_job_id(run: Run, jobs: RayJobsClient) -> tuple[str, bool]:
    """Return the run's id, or `<id>-2`, `<id>-3`... after earlier jobs ended; and whether that
    job is active."""
    count = 1
    while True:
        job_id = run.id if count == 1 else f"{run.id}-{count}"
        job = _get_settled_job(run, jobs, job_id)
        if job is None or job["status"] in ACTIVE:
            return job_id, job is not None
        count += 1


def _get_settled_job(run: Run, jobs: RayJobsClient, job_id: str) -> dict[str, Any] | None:
    """Return a job, after waiting for one whose run is over and that only finalizes."""
    deadline = time.monotonic() + FINALIZE_SECONDS
    while True:
        job = jobs.get(job_id)
        active = job is not None and job["status"] in ACTIVE
        finalizing = active and run.status().state in TERMINAL_STATES
        if not finalizing or time.monotonic() > deadline:
            return job
        time.sleep(0.2)


def entrypoint(run: Run, cluster: Cluster) -> str:
    """Return the command line of the job."""
    words = [cluster.file.python, "-m", "launch.cli", "resume", run.id]
    words += ["--store", str(run.store.root), "--address", "auto"]
    return shlex.join(words)


def _runtime_env(cluster: Cluster, package: CodePackage | None) -> dict[str, Any]:
    """Return the job's environment. It holds no secrets: stages read them by name on the
    cluster."""
    names = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    if cluster.mlflow:
        names["MLFLOW_TRACKING_URI"] = cluster.mlflow
    if package and package.commit:
        names["HEADWATER_JOB_COMMIT"] = package.commit  # the uploaded code is not a git checkout
    code = {"working_dir": f"gcs://{package.name}"} if package else {}
    return {**code, "env_vars": names}


def resubmit(run: Run, cluster_file: str) -> int:
    """Submit a new job of a stopped run to its cluster and follow it.

    Returns:
        The exit code.
    """
    from launch.cluster.config import load_cluster
    from launch.cluster.preflight import check_resources, run_preflight

    cluster = load_cluster(cluster_file, str(run.store.root))
    spec = run.spec()
    if capacity := print_capacity(run_preflight(cluster), cluster, spec):
        check_resources(spec, run.plan(), run.store, capacity)
    record = JobRecord.read(run)
    assert record is not None
    root, starts = Path(record.root), count_driver_starts(run)
    submit_job(run, cluster, pack_code(cluster, root if root.is_dir() else Path.cwd()))
    return watch_until_done(run, cluster, starts)
