"""A store works under any path: `?`, `#`, `%`, spaces, quotes, brackets and Unicode included."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from command_calls import call_command, parse_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine
from toy_runs import TWO_AND_SUM, make, numbers

from launch.tracking.mlflow_client import own_uri
from pipeline.execution.attempt import run_attempt
from pipeline.execution.runner import execute
from pipeline.storage.store import Store

NAMES = st.text("?#%41aF ='\"[]*{}$&+;,~@ü数😀", min_size=1, max_size=12).filter(str.strip)


class InThisProcess:
    """Attempts in this process."""

    def start(self):
        from pipeline.execution.resources import Resources

        return [Resources(4)]

    def source_hash(self, stage):
        return ""

    def code(self, stage):
        return {"commit": None, "dirty": False, "source_hash": ""}

    def run(self, job, stop):
        return run_attempt(job)

    def close(self):
        """Nothing was started."""


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=NAMES)
def test_commands_work_in_a_store_under_any_path(
    name: str, toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / name / "store")
        store.root.parent.mkdir()
        run = make(store, TWO_AND_SUM)
        assert execute(run, InThisProcess()).state == "finished"
        assert numbers(run)["sum"] == "24"
        root = str(store.root)
        assert parse_json(call_command(root, "status", "--json"))["store"] == root
        assert all(not e["problems"] for e in parse_json(call_command(root, "verify", "--json")))
        assert json.loads(call_command(root, "gc", "--json").stdout)["kept"] == 3
        assert Path(call_command(root, "report").stdout.strip()).is_file()
        assert [path.name for path in Path(folder).iterdir()] == [name]


@given(name=NAMES)
@settings(max_examples=50, deadline=None)
def test_the_database_lies_in_the_store(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / name
        root.mkdir()
        engine = create_engine(own_uri(root))
        with engine.begin() as connection:
            connection.exec_driver_sql("create table t (x)")
        engine.dispose()
        assert [str(path) for path in Path(folder).rglob("*.db")] == [str(root / "mlflow.db")]
