"""Mirrors a run into MLflow, from a process of its own: it may lag, it cannot fail or slow a run.

The truth stays in the store. A child process (so that neither MLflow's import nor its database
is ever on the driver's path) reads what every reader reads, the journal and the files of the
stages, and makes MLflow look like them, pass after pass. Nothing hands it work, so nothing can
block on it:

    pipeline run                experiment = the pipeline's name; tags, `<stage>.<metric>`
    └── one nested run a stage  params, series, final figures, manifest, plots, tables, inputs,
                                the model that it made; a resumed attempt goes on in the same one

`runs/<id>/mlflow.json` remembers what was sent. Each thing sent can be sent again without
being doubled (runs and models are looked up by tag, points carry their own time, files
overwrite), so a kill at any instant, an outage of any length, or another server costs nothing
but time: the next pass, or `sync` much later, sends what is missing (`lacking` says whether).
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
from launch.tracking.mlflow_client import public, tracking_uri
from pipeline.errors import Failure
from pipeline.execution.run import Run
from pipeline.storage.store import Store

INTERVAL = 2.0  # seconds between two passes
LONGEST_WAIT = 60.0  # seconds between two attempts while MLflow does not answer

LOG = "mlflow.log"


class Mirror:
    """A run's mirror, as its driver sees it."""

    def __init__(self, store: Store, run: Run, uri: str | None = None) -> None:
        self.store = store
        self.run = run
        self.uri = tracking_uri(store, uri)
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to follow the run. Returns at once and raises nothing."""
        try:
            self._child = self._launch("follow")
        except OSError as error:
            logging.getLogger("headwater").warning("no MLflow mirror: %s", error)

    def stop(self, timeout: float = 30.0) -> bool:
        """Let it send the rest, for at most `timeout` seconds.

        Returns:
            Whether MLflow has everything; what it has not, `sync` sends later.
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
        """Send what MLflow has not, in a fresh process, however long that takes.

        Raises:
            Failure: MLflow refused or did not answer; what was sent stays sent.
        """
        child = self._launch("once")
        child.communicate()
        if child.returncode:
            raise Failure(
                self.problem or "the mirror died",
                where=public(self.uri),
                remedy=f"try again when it is up; {self.run.folder / LOG} has the details",
            )

    @property
    def problem(self) -> str:
        """What stopped the last pass; empty if nothing did."""
        return str(read_cursor(self.run).get("problem", ""))

    def _launch(self, mode: str) -> subprocess.Popen[bytes]:
        # The address may hold a password: the environment is private, a command line is not.
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
                stdin=subprocess.PIPE,  # its end tells the child that the driver is gone
                stdout=log,
                stderr=log,
                env={**os.environ, **private},
                start_new_session=True,  # Ctrl-C is for the driver, which then stops it
            )


def follow(attempt: Callable[[], bool], ended: Callable[[float], bool]) -> bool:
    """Pass after pass until the run has ended, and once more; waits longer after each failure.

    Args:
        attempt: one pass; says whether it came through.
        ended: waits at most that many seconds for the run's end; says whether it came.
    """
    wait, over = 0.0, False
    while True:
        over = over or ended(wait)
        sent = attempt()
        wait = INTERVAL if sent else min(max(2 * wait, INTERVAL), LONGEST_WAIT)
        if over:
            return sent


def main(mode: str, root: str, run_id: str) -> int:
    """The child: follows a run until standard input ends, or sends what is missing once."""
    from launch.tracking.mlflow_sync import RunSynchronizer

    run = Run(Store(root), run_id)
    synchronizer = RunSynchronizer(run, tracking_uri(run.store))
    if mode == "once":
        return 0 if synchronizer.try_sync(patience=60.0) else 1
    driver = os.getppid()

    def ended(seconds: float) -> bool:
        readable, _, _ = select.select([sys.stdin], [], [], seconds)
        return bool(readable) or os.getppid() != driver

    return 0 if follow(synchronizer.try_sync, ended) else 1


if __name__ == "__main__":  # pragma: no cover: in the child, where nothing measures
    os.nice(10)  # whatever the run needs comes first
    sys.exit(main(*sys.argv[1:]))
