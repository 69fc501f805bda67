"""Each work-around for MLflow is still needed and still works.

A failure after an upgrade of MLflow means: check the work-around in
launch/tracking/mlflow_compat.py, remove it if it is no longer needed, else adapt it and raise
CHECKED_VERSION.
"""

from __future__ import annotations

import inspect
import sqlite3
from pathlib import Path

import pytest

from launch.tracking import mlflow_compat

mlflow = pytest.importorskip("mlflow")


def test_the_installed_version_was_checked() -> None:
    assert mlflow.__version__ == mlflow_compat.CHECKED_VERSION


def test_limits() -> None:
    from mlflow.utils import validation

    assert mlflow_compat.MAX_METRICS_PER_BATCH <= validation.MAX_METRICS_PER_BATCH
    assert mlflow_compat.MAX_PARAMS_PER_BATCH <= validation.MAX_PARAMS_TAGS_PER_BATCH
    assert mlflow_compat.MAX_PARAM_LENGTH <= validation.MAX_PARAM_VAL_LENGTH
    assert mlflow_compat.MAX_PARAM_KEY_LENGTH <= validation.MAX_ENTITY_KEY_LENGTH


def test_tables_tag() -> None:
    from mlflow.utils import mlflow_tags

    assert mlflow_compat.TABLES_TAG == mlflow_tags.MLFLOW_LOGGED_ARTIFACTS


def test_set_terminated_prints_the_url() -> None:
    from mlflow.tracking._tracking_service.client import TrackingServiceClient

    assert "_log_url" in inspect.getsource(TrackingServiceClient.set_terminated)
    assert "_log_url" not in inspect.getsource(TrackingServiceClient.update_run)


def test_timeouts_are_per_process() -> None:
    assert "timeout" not in inspect.signature(mlflow.MlflowClient.__init__).parameters


def test_create_database(tmp_path: Path) -> None:
    mlflow_compat.create_database(tmp_path / "a.db", tmp_path)
    with sqlite3.connect(tmp_path / "a.db") as database:
        tables = {name for (name,) in database.execute("select name from sqlite_master")}
    assert {"alembic_version", "experiments", "runs", "model_versions"} <= tables
