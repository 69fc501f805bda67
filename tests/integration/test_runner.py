"""Runs on a real Ray: one cluster for the session, one process a stage."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from toy_runs import (
    TWO_AND_SUM,
    digests,
    events,
    held,
    holds,
    log,
    make,
    numbers,
    process_of,
    until,
)

from launch.ray_compat import NODE_TIMEOUT_ENV
from launch.ray_launcher import RayLauncher, connect_to_cluster
from pipeline.errors import Failure
from pipeline.execution.attempt import Job
from pipeline.execution.resources import Resources
from pipeline.execution.run import Run
from pipeline.execution.runner import execute
from pipeline.stage_registry import find_stage
from pipeline.status import RunStatus
from pipeline.storage.store import Store

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("toys", "ray_session")]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def go(run: Run) -> RunStatus:
    return execute(run, RayLauncher(), backoff=0.01)


def test_pipeline_runs_and_its_output_is_captured(store: Store) -> None:
    run = make(store, TWO_AND_SUM.replace("value: 1", "value: 1, trouble: print"))
    assert go(run).state == "finished"
    assert numbers(run) == {"a": "10", "b": "14", "sum": "24"}
    said = log(run, "a")
    assert "printed \\x1b[31mred" in said
    assert "from a child" in said
    assert process_of(run, "a") != process_of(run, "b")
    until(lambda: not psutil.pid_exists(process_of(run, "a")))


def test_embedded_ray_has_long_node_timeouts() -> None:
    """Ray ignores settings that it does not know: its servers must have them, and know them."""
    servers = [p for p in psutil.Process().children() if p.name() in ("raylet", "gcs_server")]
    assert len(servers) == 2
    for server in servers:
        assert NODE_TIMEOUT_ENV.items() <= server.environ().items()
        program = Path(server.exe()).read_bytes()
        assert all(name.encode() in program for name in NODE_TIMEOUT_ENV)


LISTENERS = """
import json, psutil
from launch.ray_launcher import EmbeddedRay
from pipeline.execution.resources import Resources
embedded = EmbeddedRay(Resources(1))
me = psutil.Process()
print(json.dumps([
    (process.name(), link.laddr.ip.removeprefix("::ffff:"))
    for process in [me, *me.children(recursive=True)]
    for link in process.net_connections("tcp")
    if link.status == psutil.CONN_LISTEN
]))
embedded.close()
"""


def test_embedded_ray_listens_on_loopback_only() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"gcs_server", "raylet", "ray::DashboardAgent"} <= {name for name, _ in found}
    assert {ip for _, ip in found} == {"127.0.0.1"}


def test_task_of_a_stage_requests_no_cpu(store: Store) -> None:
    run = make(store, "a: {uses: toy.fan, workers: {num: 2}}")
    assert go(run).state == "finished"
    assert numbers(run) == {"a": "3"}


@pytest.mark.parametrize(
    ("trouble", "kind", "error", "attempts"),
    [("user", "user", "part: a part is odd", 1), ("die", "worker", "a process died", 2)],
)
def test_errors_of_nested_tasks_keep_their_class(
    store: Store, trouble: str, kind: str, error: str, attempts: int
) -> None:
    run = make(store, f"a: {{uses: toy.fan, trouble: {trouble}, retries: {{worker: 1}}}}")
    assert go(run).state == "failed"
    failed = events(run, "stage.failed")[0]
    assert (failed["class"], failed["error"].startswith(error)) == (kind, True)
    assert len(events(run, "stage.started")) == attempts


def test_killed_attempt_leaves_no_process(store: Store, tmp_path: Path, ray_session: Any) -> None:
    launcher = RayLauncher()
    assert launcher.start() == [Resources(2)]
    hold = tmp_path / "hold"
    hold.touch()
    params = find_stage("toy.count").params.model_validate({"hold": str(hold), "deaf": True})
    job = Job(store.root, "run-1", "a", "toy.count", "0" * 16, params, {}, 1)
    mark = job.attempt_dir / "holds"
    assert launcher.run(job, mark.exists).status == "killed"
    until(lambda: not psutil.pid_exists(int(mark.read_text())), 10)
    launcher.close()
    assert ray_session.is_initialized()


def test_concurrent_runs_make_each_artifact_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.ray_launcher.NODE_CHECK_INTERVAL", 0.0)
    hold = tmp_path / "hold"
    hold.touch()
    runs = [make(store, held(hold)), make(store, held(hold))]
    threads = [threading.Thread(target=go, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    until(lambda: any(holds(run, "a") for run in runs))
    until(lambda: any(events(run, "stage.waiting", "a") for run in runs))
    hold.unlink()
    for thread in threads:
        thread.join()
    assert [run.status().state for run in runs] == ["finished", "finished"]
    made = [event["stage"] for run in runs for event in events(run, "stage.finished")]
    assert sorted(made) == ["a", "b", "sum"]
    assert digests(runs[0]) == digests(runs[1])


def test_unreachable_cluster_is_one_line() -> None:
    with pytest.raises(Failure, match="the Ray cluster does not answer") as caught:
        connect_to_cluster("not an address")
    assert "headwater cluster status" in caught.value.remedy


def test_failed_start_is_one_line_and_leaves_nothing() -> None:
    program = (
        "import tempfile, sys\nfrom launch import ray_launcher\n"
        "from pipeline.errors import Failure\n"
        "from pipeline.execution.resources import Resources\n"
        "tempfile.tempdir = sys.argv[1]\nray_launcher.START_ATTEMPTS = 2\n"
        "try:\n    ray_launcher.EmbeddedRay(Resources(-1))\n"
        "except Failure as failure:\n    print(failure.message, failure.remedy)\n"
    )
    short = Path(tempfile.mkdtemp(dir="/tmp", prefix="hw"))
    command = [sys.executable, "-c", program, str(short)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("Ray did not start in 2 attempts: ")
    assert "headwater doctor" in said
    assert list(short.iterdir()) == []
    short.rmdir()
