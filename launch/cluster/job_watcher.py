"""Watching a run that a cluster carries out, until it is over or Ctrl-C detaches.

What is shown comes from the store. The head is only asked whether the job lives, again and again:
the end of a log is not the end of a job, and a head that is silent for a while may come back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launch.ui import console
from launch.ui.options import store_flag
from pipeline.errors import Failure, HeadwaterError, UserError
from pipeline.storage.atomic_io import write_atomic

if TYPE_CHECKING:
    from launch.cluster.config import Cluster
    from pipeline.execution.run import Run

LOG = "job.log"
ASK = 2.0  # seconds between two questions to the head
LOST = 60.0  # seconds of a silent head with no driver at work until we say so
SETTLE = 5.0  # seconds that a journal may lag behind the end of its job


def drives(run: Run) -> int:
    """How often a driver took the run up."""
    return sum(event["event"] == "run.started" for event in run.events())


def stay(run: Run, cluster: Cluster, before: int, detach: bool = False) -> int:
    """Watch until the run is over; Ctrl-C leaves it running.

    Args:
        before: how often a driver had taken the run up before this job.

    Returns:
        The exit code.
    """
    from launch.ui.live_table import watch

    flag = store_flag(run.store)
    console.say(f"run {run.id} is on {cluster.name}")
    if detach:
        _how_to_come_back(run, flag)
        return 0
    watcher = Watcher(run, cluster, before)
    try:
        watch(run, watcher.ended, lambda: watcher.note)
    except KeyboardInterrupt:
        console.say()
        console.say("detached: the run goes on without this terminal")
        _how_to_come_back(run, flag)
        return 130
    return watcher.conclude()


def _how_to_come_back(run: Run, flag: str) -> None:
    console.advise(f"headwater status {run.id} --watch{flag}", "watches it")
    console.advise(f"headwater logs {run.id} -f{flag}", "reads along")
    console.advise(f"headwater cancel {run.id}{flag}", "stops it after a checkpoint")


@dataclass
class Watcher:
    """Follows a job by asking for its state: the end of a log is not the end of a job."""

    run: Run
    cluster: Cluster
    before: int
    """How often a driver had taken the run up before."""
    note: str = "the cluster prepares the job"
    sleep: Callable[[float], None] = time.sleep
    _asked: float = 0.0
    _silent_since: float | None = None
    _ended_at: float | None = None
    _job: dict[str, Any] | None = None

    def ended(self, seconds: float) -> bool:
        """Wait, look, and say whether there is nothing left to wait for.

        Raises:
            Failure: the head is gone, and with it the run's driver.
        """
        from launch.commands.status import OVER

        self.sleep(seconds)
        if drives(self.run) > self.before:
            self.note = ""
            if self.run.status().state in OVER and not self.run.driven():
                return True
        if time.monotonic() - self._asked >= ASK:
            self._asked = time.monotonic()
            self._ask()
        if self._ended_at is not None:
            return time.monotonic() - self._ended_at > SETTLE and not self.run.driven()
        self._check_lost()
        return False

    def _ask(self) -> None:
        from launch.cluster.ray_jobs_client import ACTIVE, Unreachable
        from launch.commands.submit import last_job

        try:
            self._job = last_job(self.run, self.cluster)
        except (Unreachable, UserError) as error:
            self._silent_since = self._silent_since or time.monotonic()
            self.note = f"{error.message}; asking again"
            return
        if self._silent_since:
            self.note, self._silent_since = "", None
        over = self._job is None or self._job["status"] not in ACTIVE
        if over and self._ended_at is None:
            self._ended_at = time.monotonic()

    def _check_lost(self) -> None:
        silent = self._silent_since is not None and time.monotonic() - self._silent_since > LOST
        if silent and not self.run.driven():
            flag = store_flag(self.run.store)
            raise Failure(
                "the head is gone, and the run's driver with it; what was made is safe",
                where=self.cluster.address,
                remedy=f"headwater cluster up {self.cluster.name}, "
                f"then headwater resume {self.run.id}{flag}",
            )

    def conclude(self) -> int:
        """Tell how it ended, keep the job's own words; the exit code."""
        from launch.driver import last_words
        from pipeline.execution.runner import exit_code

        status = self.run.status()
        if status.state not in ("finished", "pending"):
            _keep_log(self.run, self.cluster)
        if drives(self.run) <= self.before and status.state != "cancelled":
            raise self._never_began()
        last_words(self.run, status)
        return exit_code(self.run)

    def _never_began(self) -> Failure:
        """The job ended before the run's driver wrote a word."""
        _keep_log(self.run, self.cluster)
        said = str((self._job or {}).get("message") or "the head forgot the job")
        lines = [line for line in said.strip().splitlines() if line.strip()]
        return Failure(
            f"the job ended before the run began: {lines[-1] if lines else said}",
            where=str(self.run.folder / LOG),
            remedy=f"headwater resume {self.run.id}{store_flag(self.run.store)}",
        )


def _keep_log(run: Run, cluster: Cluster) -> None:
    """What the job's driver printed, into the store: a head forgets it when it is restarted."""
    from launch.commands.submit import last_job

    try:
        job = last_job(run, cluster)
        text = cluster.jobs().logs(job["submission_id"]) if job else ""
    except HeadwaterError:
        return
    if text:
        write_atomic(run.folder / LOG, text, durable=False)
