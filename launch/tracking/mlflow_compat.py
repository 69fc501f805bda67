"""Everything that relies on undocumented behaviour of MLflow, checked against MLflow 3.17.2.

tests/launch/tracking/test_mlflow_compat.py fails when a work-around is no longer needed or no
longer works. MLflow is imported only inside functions: importing it takes seconds.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

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


LOCATION_COLUMNS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "model_versions": ("source", "storage_location"),
    "logged_models": ("artifact_location",),
    "tags": ("value",),
    "logged_model_tags": ("tag_value",),
}
"""Columns of a tracking database that hold absolute locations; no API of MLflow changes them."""


def database_uri(path: Path) -> str:
    """Return the URI of a SQLite file.

    SQLAlchemy decodes `%` and ends the path at a `?`, so that both are encoded; MLflow makes the
    parent folder of a path with the prefix `sqlite:///` without decoding it, hence the driver.
    """
    if not {"%", "?"} & set(str(path)):
        return f"sqlite:///{path}"
    return f"sqlite+pysqlite:///{quote(str(path))}"


def default_location(uri: str) -> str:
    """Return the location of the experiment that every tracking database is created with; empty if
    the database has no tables yet."""
    from sqlalchemy import Integer, String, column, create_engine, select, table
    from sqlalchemy.exc import OperationalError

    location, number = column("artifact_location", String), column("experiment_id", Integer)
    query = select(location).select_from(table("experiments", location, number)).where(number == 0)
    engine = create_engine(uri)
    try:
        with suppress(OperationalError), engine.connect() as connection:
            return str(connection.execute(query).scalar() or "")
    finally:
        engine.dispose()
    return ""


def replace_locations(uri: str, old: str, new: str) -> int:
    """Replace a prefix of all locations in a tracking database; return the number replaced."""
    from sqlalchemy import String, column, create_engine, func, literal, table, update

    count = 0
    engine = create_engine(uri)
    with engine.begin() as connection:
        for name, columns in LOCATION_COLUMNS.items():
            for location in (column(found, String) for found in columns):
                moved = literal(new) + func.substr(location, len(old) + 1)
                statement = update(table(name, location)).values({location: moved})
                found = statement.where(
                    func.substr(location, 1, len(old)) == old,
                    func.substr(location, 1, len(new))
                    != new,  # the new place may be within the old
                )
                count += connection.execute(found).rowcount
    engine.dispose()
    return count


def create_database(path: Path, artifacts: Path) -> None:
    """Create a tracking database, including its migrations, in a SQLite file.

    Args:
        path: file to create.
        artifacts: artifact root of the default experiment.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    silence_loggers()
    SqlAlchemyStore(database_uri(path), artifacts.as_uri()).engine.dispose()


def mark_finished(client: MlflowClient, run_id: str) -> None:
    """Set a run's status to FINISHED without output; `set_terminated` prints the run's URL."""
    client.update_run(run_id, status="FINISHED")
