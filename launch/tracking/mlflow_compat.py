"""Everything that relies on undocumented behaviour of MLflow, checked against MLflow 3.17.2.

tests/launch/tracking/test_mlflow_compat.py fails when a work-around is no longer needed or no
longer works. MLflow is imported only inside functions: importing it takes seconds.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHECKED_VERSION = "3.17.2"
MAX_METRICS_PER_BATCH = 1000
MAX_PARAMS_PER_BATCH = 100
MAX_PARAM_LENGTH = 6000  # characters
MAX_PARAM_KEY_LENGTH = 250
TABLES_TAG = "mlflow.loggedArtifacts"
"""Run tag that lists the artifacts that the UI displays as tables."""


def configure_client(timeout: int) -> None:
    """Limit the time and retries of each request of this process and disable telemetry; MLflow has
    no per-client settings."""
    os.environ.update(
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
        MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR="0",
        MLFLOW_HTTP_REQUEST_TIMEOUT=str(timeout),
        MLFLOW_DISABLE_TELEMETRY="true",
    )


def silence_loggers() -> None:
    """Raise the log level of MLflow and of its migration tool to warnings."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def create_database(path: Path, artifacts: Path) -> None:
    """Create a tracking database, including its migrations, in a SQLite file.

    Args:
        path: file to create.
        artifacts: artifact root of the default experiment.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    silence_loggers()
    SqlAlchemyStore(f"sqlite:///{path}", artifacts.as_uri()).engine.dispose()


def mark_finished(client: MlflowClient, run_id: str) -> None:
    """Set a run's status to FINISHED without output; `set_terminated` prints the run's URL."""
    client.update_run(run_id, status="FINISHED")
