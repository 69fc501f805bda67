"""Follows a run that a cluster executes, until it ends or Ctrl-C detaches.

What is displayed comes from the store. The head is only polled for the state of the job:
completion is read from the job status, not from the end of its log, and a head that does not
answer for a while may come back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launch.cluster.job_record import latest_job
from launch.cluster.ray_jobs_client import ACTIVE, Unreachable
from launch.ui import console
from launch.ui.options import store_flag
from pipeline.atomic_io import write_atomic
from pipeline.errors import Failure, HeadwaterError, UserError
from pipeline.status import TERMINAL_STATES

if TYPE_CHECKING:
    from launch.cluster.config import Cluster
    from pipeline.execution.run import Run

LOG = "job.log"
POLL_INTERVAL = 2.0  # seconds between two polls of the head
HEAD_TIMEOUT = 60.0  # seconds without an answer of the head and without a driver; then give up
JOURNAL_DELAY = 5.0  # seconds that the journal may lag behind the end of its job


def count_driver_starts(run: Run) -> int:
    """Return how often a driver started the run."""
    return sum(event["event"] == "run.started" for event in run.events())


def watch_until_done(run: Run, cluster: Cluster, starts: int, detach: bool = False) -> int:
    """Display a submitted run until it ends; Ctrl-C detaches and leaves it running.

    Args:
        starts: driver starts before this job.
        detach: return at once.

    Returns:
        The exit code.
    """
    from launch.ui.live_table import watch

    console.echo(f"run {run.id} was submitted to {cluster.name}")
    if detach:
        _suggest_follow_commands(run)
        return 0
    watcher = JobWatcher(run, cluster, starts)
    try:
        watch(run, watcher.wait_for_end, lambda: watcher.note)
    except KeyboardInterrupt:
        console.echo()
        console.echo("detached; the run continues")
        _suggest_follow_commands(run)
        return 130
    return watcher.finish()


def _suggest_follow_commands(run: Run) -> None:
    flag = store_flag(run.store)
    console.suggest_command(f"headwater status {run.id} --watch{flag}", "shows its progress")
    console.suggest_command(f"headwater logs {run.id} -f{flag}", "follows its logs")
    console.suggest_command(f"headwater cancel {run.id}{flag}", "stops it after a checkpoint")


@dataclass
class JobWatcher:
    """Poller of one job's state."""

    run: Run
    cluster: Cluster
    starts: int
    """Driver starts before this job."""
    note: str = "the cluster prepares the job"
    """Line under the table."""
    sleep: Callable[[float], None] = time.sleep
    _polled: float = 0.0
    _silent_since: float | None = None
    _ended_at: float | None = None
    _job: dict[str, Any] | None = None

    def wait_for_end(self, seconds: float) -> bool:
        """Wait, poll, and return whether the run is over.

        Raises:
            Failure: neither the head nor the run's driver is alive.
        """
        self.sleep(seconds)
        if count_driver_starts(self.run) > self.starts:
            self.note = ""
            if self.run.status().state in TERMINAL_STATES and not self.run.has_driver():
                return True
        if time.monotonic() - self._polled >= POLL_INTERVAL:
            self._polled = time.monotonic()
            self._poll_head()
        if self._ended_at is not None:
            return time.monotonic() - self._ended_at > JOURNAL_DELAY and not self.run.has_driver()
        silent = self._silent_since is not None
        if silent and time.monotonic() - (self._silent_since or 0.0) > HEAD_TIMEOUT:
            self._require_driver()
        return False

    def _poll_head(self) -> None:
        try:
            self._job = latest_job(self.run, self.cluster)
        except (Unreachable, UserError) as error:
            self._silent_since = self._silent_since or time.monotonic()
            self.note = f"{error.message}; retrying"
            return
        if self._silent_since:
            self.note, self._silent_since = "", None
        over = self._job is None or self._job["status"] not in ACTIVE
        if over and self._ended_at is None:
            self._ended_at = time.monotonic()

    def _require_driver(self) -> None:
        if not self.run.has_driver():
            resume = f"headwater resume {self.run.id}{store_flag(self.run.store)}"
            raise Failure(
                "the Ray head and the run's driver are gone; finished work is in the store",
                where=self.cluster.address,
                remedy=f"headwater cluster up {self.cluster.name}, then {resume}",
            )

    def finish(self) -> int:
        """Save the job's log if the run did not finish, print the summary, return the exit code.

        Raises:
            Failure: the job ended before its driver started.
        """
        from launch.run_summary import print_summary
        from pipeline.execution.runner import exit_code

        status = self.run.status()
        if status.state not in ("finished", "pending"):
            _save_job_log(self.run, self.cluster)
        if count_driver_starts(self.run) <= self.starts and status.state != "cancelled":
            _save_job_log(self.run, self.cluster)
            message = str((self._job or {}).get("message") or "the head no longer knows the job")
            lines = [line for line in message.strip().splitlines() if line.strip()]
            raise Failure(
                f"the job ended before the run started: {lines[-1] if lines else message}",
                where=str(self.run.folder / LOG),
                remedy=f"headwater resume {self.run.id}{store_flag(self.run.store)}",
            )
        print_summary(self.run, status)
        return exit_code(self.run)


def _save_job_log(run: Run, cluster: Cluster) -> None:
    """Write the output of the job's driver to the store; a restarted head has lost it."""
    try:
        job = latest_job(run, cluster)
        text = cluster.jobs().logs(job["submission_id"]) if job else ""
    except HeadwaterError:
        return
    if text:
        write_atomic(run.folder / LOG, text, durable=False)
