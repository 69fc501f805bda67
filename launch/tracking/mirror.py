"""Mirrors a run into MLflow from a child process, so that MLflow can neither slow nor fail a run.

The store is the only source of truth. The child (which keeps MLflow's import and database off the
driver's path) reads the journal and the stages' files, as every other reader does, and repeatedly
brings MLflow up to date:

    pipeline run                   experiment = the pipeline's name; tags, `<stage>.<metric>`
    └── one nested run per stage   params, series, final metrics, manifest, plots, tables, inputs,
                                   the model that it made; a resumed attempt uses the same run

`runs/<id>/mlflow.json` records what was sent. Everything can be sent again without duplicates (runs
and models are looked up by tag, points carry their own time, files are overwritten), so after a
kill, an outage or a change of server the next pass, or `sync` at any later time, sends the rest.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from launch.tracking.cursor import read_cursor
from launch.tracking.mlflow_client import hide_credentials, tracking_uri
from pipeline.errors import Failure
from pipeline.execution.run import Run
from pipeline.storage.store import Store

INTERVAL = 2.0  # seconds between two passes
MAX_BACKOFF = 60.0  # seconds between two passes while MLflow does not answer

LOG = "mlflow.log"


class Mirror:
    """Handle of the mirror process of a run."""

    def __init__(self, store: Store, run: Run, uri: str | None = None) -> None:
        self.store = store
        self.run = run
        self.uri = tracking_uri(store, uri)
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start to follow the run. Returns at once and raises nothing."""
        try:
            self._child = self._launch("follow")
        except OSError as error:
            logging.getLogger("headwater").warning("no MLflow mirror: %s", error)

    def stop(self, timeout: float = 30.0) -> bool:
        """Wait at most `timeout` seconds until the child has sent the rest.

        Returns:
            Whether MLflow has everything; `sync` can send the rest later.
        """
        child, self._child = self._child, None
        if child is None:
            return False
        assert child.stdin is not None
        child.stdin.close()
        try:
            return child.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            return False

    def sync(self) -> None:
        """Send what MLflow lacks, in a new child process, without a time limit.

        Raises:
            Failure: MLflow refused or did not answer; what was sent is kept.
        """
        child = self._launch("once")
        child.communicate()
        if child.returncode:
            raise Failure(
                self.problem or "the mirror process died",
                where=hide_credentials(self.uri),
                remedy=f"retry when MLflow is up; {self.run.folder / LOG} has the details",
            )

    @property
    def problem(self) -> str:
        """Error of the last pass; empty if it succeeded."""
        return str(read_cursor(self.run).get("problem", ""))

    def _launch(self, mode: str) -> subprocess.Popen[bytes]:
        # The URI may hold a password: the environment is private, a command line is not.
        command = [sys.executable, "-m", "launch.tracking.mirror"]
        root, known = str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")
        private = {
            "MLFLOW_TRACKING_URI": self.uri,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([root, known] if known else [root]),
        }
        with (self.run.folder / LOG).open("ab") as log:
            return subprocess.Popen(
                [*command, mode, str(self.store.root), self.run.id],
                stdin=subprocess.PIPE,  # closed when the driver is gone
                stdout=log,
                stderr=log,
                env={**os.environ, **private},
                start_new_session=True,  # Ctrl-C reaches the driver, which stops the child
            )


def follow(attempt: Callable[[], bool], ended: Callable[[float], bool]) -> bool:
    """Repeat a pass until the run has ended, and once more, with exponential back-off.

    Args:
        attempt: makes one pass; returns whether it succeeded.
        ended: waits at most that many seconds for the end of the run; returns whether it came.

    Returns:
        Whether the last pass succeeded.
    """
    wait, over = 0.0, False
    while True:
        over = over or ended(wait)
        sent = attempt()
        wait = INTERVAL if sent else min(max(2 * wait, INTERVAL), MAX_BACKOFF)
        if over:
            return sent


def main(mode: str, root: str, run_id: str) -> int:
    """Follow a run until standard input ends, or send what is missing once; return the exit
    code."""
    from launch.tracking.mlflow_sync import RunSynchronizer

    run = Run(Store(root), run_id)
    synchronizer = RunSynchronizer(run, tracking_uri(run.store))
    if mode == "once":
        return 0 if synchronizer.try_sync(timeout=60.0) else 1
    driver = os.getppid()

    def ended(seconds: float) -> bool:
        readable, _, _ = select.select([sys.stdin], [], [], seconds)
        return bool(readable) or os.getppid() != driver

    return 0 if follow(synchronizer.try_sync, ended) else 1


if __name__ == "__main__":  # pragma: no cover: in the child, where nothing measures
    os.nice(10)  # the run has priority
    sys.exit(main(*sys.argv[1:]))
