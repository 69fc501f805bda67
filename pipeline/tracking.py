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
but time: the next pass, or `sync` much later, sends what is missing.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifact import move
from pipeline.errors import Failure, HeadwaterError
from pipeline.journal import Run
from pipeline.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

INTERVAL = 2.0  # seconds between two passes
LONGEST_WAIT = 60.0  # seconds between two attempts while MLflow does not answer
TIMEOUT = 5  # seconds that one request may take; it is tried twice

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
CURSOR = "mlflow.json"
LOG = "mlflow.log"


def tracking_uri(store: Store, uri: str | None = None) -> str:
    """Where MLflow is: as told, or MLFLOW_TRACKING_URI, or a database inside the store."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store.root / DATABASE}"


def is_server(uri: str) -> bool:
    """Whether MLflow is another process, which does not see our files."""
    return uri.startswith(("http://", "https://", "databricks"))


def public(uri: str) -> str:
    """The address without the user and the password that it may hold."""
    return re.sub(r"://[^/\s@]+@", "://***@", uri)


def ui_command(store: Store, uri: str | None = None) -> list[str]:
    """The command that shows it all in a browser, on this machine only."""
    where = tracking_uri(store, uri)
    if is_server(where):
        return ["python", "-m", "webbrowser", public(where)]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", where]
    root = (store.root / ARTIFACTS).as_uri()
    return [*command, "--default-artifact-root", root, "--host", "127.0.0.1", "--workers", "1"]


def connect(uri: str, timeout: int = TIMEOUT) -> MlflowClient:
    """A client that gives up soon. Imports MLflow, which takes seconds."""
    os.environ.update(
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
        MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR="0",
        MLFLOW_HTTP_REQUEST_TIMEOUT=str(timeout),
        MLFLOW_DISABLE_TELEMETRY="true",
    )
    from mlflow import MlflowClient

    _hush()
    return MlflowClient(uri, registry_uri=uri)


def prepare(store: Store, uri: str) -> None:
    """Make the store's own database, if it is to be used and is not there.

    It is made aside and moved into place whole: MLflow's migrations are not one transaction, and
    a database that a kill left in the middle of them can never be opened again. The caller is
    the `sole_writer`.
    """
    target = store.root / DATABASE
    if uri != f"sqlite:///{target}" or target.exists():
        return
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    _hush()
    aside = target.with_name(f".{DATABASE}.new")
    aside.unlink(missing_ok=True)
    (store.root / ARTIFACTS).mkdir(exist_ok=True)
    made = SqlAlchemyStore(f"sqlite:///{aside}", (store.root / ARTIFACTS).as_uri())
    made.engine.dispose()
    move(aside, target)


def _hush() -> None:
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextmanager
def mlflow_errors(uri: str) -> Iterator[None]:
    """Whatever MLflow raises (it has no one base class) as a `Failure` of one line."""
    try:
        yield
    except HeadwaterError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Failure(
            f"MLflow: {public(reason)[:300]}",
            where=public(uri),
            remedy="check that it is up and what MLFLOW_TRACKING_URI says; nothing is lost",
        ) from error


@contextmanager
def sole_writer(store: Store, patience: float) -> Iterator[None]:
    """One process at a time writes to MLflow for a store: SQLite has one writer.

    Raises:
        Failure: another one was at it for `patience` seconds.
    """
    store.root.mkdir(parents=True, exist_ok=True)
    with (store.root / f".{DATABASE}.lock").open("w") as lock:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    raise Failure("another process is writing to MLflow") from None
                time.sleep(0.05)
        yield


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
        command = [sys.executable, "-m", "pipeline.tracking"]
        root, known = str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")
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


def read_cursor(run: Run) -> dict[str, Any]:
    """What is known to have been sent; empty if nothing or unreadable."""
    try:
        return dict(json.loads((run.folder / CURSOR).read_text()))
    except (OSError, ValueError):
        return {}


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
    from pipeline.replica import Replica

    run = Run(Store(root), run_id)
    replica = Replica(run, tracking_uri(run.store))
    if mode == "once":
        return 0 if replica.attempt(patience=60.0) else 1
    driver = os.getppid()

    def ended(seconds: float) -> bool:
        readable, _, _ = select.select([sys.stdin], [], [], seconds)
        return bool(readable) or os.getppid() != driver

    return 0 if follow(replica.attempt, ended) else 1


if __name__ == "__main__":  # pragma: no cover: in the child, where nothing measures
    os.nice(10)  # whatever the run needs comes first
    sys.exit(main(*sys.argv[1:]))
