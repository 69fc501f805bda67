"""A submitted run's `job.json`: its cluster, the directory it was submitted from, its Ray jobs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from launch.cluster.config import load_cluster
from launch.cluster.ray_jobs_client import ACTIVE, Unreachable
from launch.ui.options import store_flag
from pipeline.atomic_io import read_json, write_atomic

if TYPE_CHECKING:
    from launch.cluster.config import Cluster
    from pipeline.execution.run import Run

RECORD = "job.json"


@dataclass(frozen=True)
class JobRecord:
    """The content of `job.json`."""

    cluster: str
    """Absolute path of the cluster file."""
    root: str
    """Directory that the run was submitted from."""
    jobs: tuple[str, ...] = ()
    """Ids of the run's Ray jobs, oldest first."""
    code: str = ""
    """Name of the newest job's code package, which contains its hash; empty for installed code."""

    @classmethod
    def read(cls, run: Run) -> JobRecord | None:
        """Read the record of a run; None if the run was never submitted."""
        data: dict[str, Any] = read_json(run.folder / RECORD, {})
        return cls(**{**data, "jobs": tuple(data["jobs"])}) if data else None

    def write(self, run: Run) -> None:
        """Write the record to the run's folder."""
        write_atomic(run.folder / RECORD, json.dumps(asdict(self)) + "\n")


def submitted_cluster(run: Run) -> str | None:
    """Return the cluster file that a run was submitted to; None if it was not submitted."""
    record = JobRecord.read(run)
    return record.cluster if record else None


def copy_job_record(source: Run, target: Run) -> None:
    """Assign the cluster of a submitted run to the run that continues it."""
    if record := JobRecord.read(source):
        replace(record, jobs=()).write(target)


def latest_job(run: Run, cluster: Cluster) -> dict[str, Any] | None:
    """Return the newest job of a run from the head; None if the head does not know it."""
    record = JobRecord.read(run)
    return cluster.jobs().get(record.jobs[-1]) if record and record.jobs else None


def is_job_gone(run: Run, cluster_file: str, now: bool) -> bool | None:
    """Return whether no job of a submitted run is pending or running; None while the head
    has no record of a job.

    Args:
        now: stop an active job.

    Raises:
        Failure: the head does not answer; its job may still start.
    """
    cluster = load_cluster(cluster_file, str(run.store.root))
    try:
        job = latest_job(run, cluster)
        if job is None:
            return None
        if job["status"] in ACTIVE and now:
            cluster.jobs().stop(job["submission_id"])
    except Unreachable as error:
        command = f"headwater cancel {run.id}{store_flag(run.store)}"
        error.remedy = (
            f"{command}   (once the head is back; a job that starts earlier stops itself)"
        )
        raise
    return now or job["status"] not in ACTIVE
