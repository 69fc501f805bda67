"""MLflow refused, silent, answering 500, its mirror killed: no run notices, nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import sample_run
from click.testing import CliRunner
from mlflow_outages import broken, refused, silent

from launch.cli import cli
from launch.tracking.cursor import read_cursor, unsynced_reason
from launch.tracking.mirror import Mirror
from launch.tracking.mlflow_client import connect, tracking_uri
from pipeline.errors import Failure
from pipeline.execution.run import Run

pytestmark = pytest.mark.faults

STEPS = 2500  # five keys: more than ten batches
POINTS = dict(sample_run.points("gpt", STEPS))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return sample_run.make(tmp_path / "store", names=("gpt",), steps=STEPS)


def assert_exact(run: Run) -> None:
    """One MLflow run of the stage, with every point of it once."""
    client = connect(tracking_uri(run.store))
    experiment = client.get_experiment_by_name("quickstart").experiment_id
    found = client.search_runs([experiment], "tags.`headwater.stage` = 'gpt'")
    assert len(found) == 1
    assert len(client.search_logged_models([experiment])) == 1
    for key in POINTS[24]:
        history = client.get_metric_history(found[0].info.run_id, key)
        expected = [(step, values[key]) for step, values in POINTS.items() if key in values]
        assert sorted((point.step, point.value) for point in history) == expected


def wait(reached: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("outage", [refused, silent, broken])
def test_an_outage_is_not_noticed_and_later_all_is_sent(run: Run, outage: Any) -> None:
    this = psutil.Process()
    with outage() as (port, called):
        mirror = Mirror(run.store, run, f"http://127.0.0.1:{port}")
        threads = this.num_threads()
        started = time.monotonic()
        mirror.start()
        assert time.monotonic() - started < 5
        # The driver has no thread and no connection that could make it wait for MLflow: all of
        # that is in a process of lower priority, which reads files that the driver writes anyway.
        assert this.num_threads() == threads
        assert mirror._child is not None
        child = psutil.Process(mirror._child.pid)
        wait(lambda: called() and child.nice() > min(this.nice(), 18))  # 19 is the lowest
        wait(lambda: bool(mirror.problem) or outage is silent)
        mine = [c for c in this.net_connections("tcp") if c.raddr and c.raddr.port == port]
        assert mine == []
        stopping = time.monotonic()
        assert not mirror.stop(0.5)
        assert time.monotonic() - stopping < 20
        assert not child.is_running()
    assert unsynced_reason(run) == (mirror.problem or "there was not enough time to send it")
    if outage is refused:
        with pytest.raises(Failure, match="MLflow"):
            mirror.sync()
    done = CliRunner().invoke(cli, ["report", "--sync", "--store", str(run.store.root)])
    assert "MLflow is up to date" in done.output
    assert unsynced_reason(run) == ""
    assert_exact(run)
    assert read_cursor(run)["problem"] == ""


def test_a_mirror_killed_at_any_point_loses_and_doubles_nothing(run: Run) -> None:
    def sent(least: int) -> Callable[[], bool]:
        def reached() -> bool:
            stages = read_cursor(run).get("stages", {}).values()
            return any(entry.get("step", -1) >= least for entry in stages)

        return reached

    def aside(seconds: float) -> Callable[[], bool]:
        """That long after the new database was begun."""
        before, begun = time.time(), [0.0]

        def reached() -> bool:
            for path in (new, run.store.root / "mlflow.db"):
                if not begun[0] and path.exists() and path.stat().st_ctime > before:
                    begun[0] = time.monotonic()
            return bool(begun[0]) and time.monotonic() - begun[0] >= seconds

        return reached

    new = run.store.root / ".mlflow.db.new"
    points: list[Callable[[], Callable[[], bool]]] = [
        lambda: aside(0),  # MLflow's migrations, which are not one transaction
        lambda: aside(1),
        lambda: lambda: bool(read_cursor(run).get("parent")),
        lambda: sent(0),
        lambda: sent(STEPS // 2),
    ]
    for point in points:
        reached = point()
        mirror = Mirror(run.store, run)
        mirror.start()
        wait(reached)
        assert mirror._child is not None
        mirror._child.kill()
        mirror._child.wait()
    Mirror(run.store, run).sync()
    assert_exact(run)
