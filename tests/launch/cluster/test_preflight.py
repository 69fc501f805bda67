"""Preflight checks; those of a real head are in tests/integration."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

import pytest

from launch.cluster import preflight
from launch.cluster.config import load_cluster
from launch.cluster.ray_jobs_client import RayJobsClient, Unreachable
from pipeline.errors import Failure, SpecError, UserError
from pipeline.execution.plan import make_plan
from pipeline.execution.resources import Resources
from pipeline.spec import spec_checker
from pipeline.storage.store import PublishRequest, Store


class Answer(BaseHTTPRequestHandler):
    """Some web server; not a Ray head."""

    def do_GET(self) -> None:
        code = 500 if self.path == "/ill/health" else 200
        self.send_response(code)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    http = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


@pytest.fixture
def closed() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_no_server_at_the_address(closed: str) -> None:
    with pytest.raises(Unreachable, match="no Ray head answers: connection refused"):
        RayJobsClient(closed).version()


def test_another_server_at_the_address(server: str) -> None:
    with pytest.raises(Unreachable, match="the server at this address is not a Ray head"):
        RayJobsClient(server).version()


def test_a_silent_server_at_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(Unreachable, match="no answer within 2 s"):
            RayJobsClient(f"http://127.0.0.1:{silent.getsockname()[1]}").version()
        assert time.monotonic() - start < 4.0


def test_mlflow_health_check(server: str, closed: str) -> None:
    preflight.check_mlflow(None)
    preflight.check_mlflow("sqlite:///x.db")
    preflight.check_mlflow("postgresql://me@postgres/mlflow")
    preflight.check_mlflow(server)
    with pytest.raises(Failure, match="MLflow does not answer: status 500"):
        preflight.check_mlflow(f"{server}/ill")
    with pytest.raises(Failure, match="connection refused"):
        preflight.check_mlflow(closed)
    with socket.create_server(("127.0.0.1", 0)) as other:
        hangs_up = threading.Thread(target=lambda: other.accept()[0].sendall(b"SSH-2.0\r\n"))
        hangs_up.start()
        with pytest.raises(Failure, match="MLflow does not answer: ssh"):
            preflight.check_mlflow(f"http://127.0.0.1:{other.getsockname()[1]}")
        hangs_up.join()


@pytest.mark.parametrize(
    "address",
    [
        "http://me:hunter2@mlflow:5000",
        "postgresql+psycopg://me:hunter2@postgres/mlflow",
        "postgresql://postgres/mlflow?user=me&password=hunter2",
    ],
)
def test_uri_with_password_is_refused_and_hidden(address: str) -> None:
    with pytest.raises(UserError, match="holds a password") as refused:
        preflight.check_mlflow(address)
    assert "hunter2" not in str(refused.value) + refused.value.remedy


def test_store_check_writes_a_file(tmp_path: Path) -> None:
    preflight.check_store(tmp_path / "new" / "store")
    assert list((tmp_path / "new" / "store").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the store is not writable: not a directory"):
        preflight.check_store(tmp_path / "file" / "store")


@pytest.fixture
def dribbling() -> Iterator[str]:
    """Start a server that sends a byte now and then and never finishes."""
    ended = threading.Event()

    class Dribble(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):
                while not ended.wait(0.02):
                    self.wfile.write(b"H")

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Dribble)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    ended.set()
    http.shutdown()
    http.server_close()


def test_checks_end_at_the_deadline(
    dribbling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Abandon a head and an MLflow that never finish, and a store whose file system hangs."""
    monkeypatch.setattr(preflight, "DEADLINE", 0.2)
    (tmp_path / "far.yaml").write_text(f"address: {dribbling}\nmlflow: {dribbling}\n")
    store = tmp_path / "store"
    store.mkdir()
    os.mkfifo(store / f".probe-{os.getpid()}")
    answers = preflight.run_preflight(load_cluster(str(tmp_path / "far.yaml"), str(store)))
    assert not answers.reachable
    with pytest.raises(preflight.PreflightError) as refused:
        answers.require_ready(promotes=True)
    assert str(refused.value).splitlines() == [
        f"the head at {dribbling} did not answer within 0.2 s",
        f"the store at {store} did not answer within 0.2 s",
        f"MLflow at {dribbling} did not answer within 0.2 s",
    ]


def refused_resources(tmp_path: Path, stages: str, *nodes: tuple[float, float]) -> list[str]:
    file = tmp_path / "toy.yaml"
    file.write_text(f"name: toy\nstages:\n{stages}")
    asked, store = spec_checker.load_spec(file), Store(tmp_path / "store")
    try:
        machines = [Resources(cpus, gpus) for cpus, gpus in nodes]
        preflight.check_resources(asked, make_plan(asked, store), store, machines)
    except SpecError as refused:
        return [str(problem).removeprefix(f"{file}:") for problem in refused.problems]
    return []


@pytest.mark.usefixtures("toys")
def test_excess_requests_are_refused(tmp_path: Path) -> None:
    stages = """\
  fits: {uses: toy.count, workers: {num: 8, cpus: 1}}
  much: {uses: toy.count, workers: {num: 9}}
  broad: {uses: toy.count, workers: {cpus: 5}}
  fast: {uses: toy.count, workers: {num: 2, gpus: 1}}
  cut: {uses: toy.count, workers: {num: 3, cpus: 2}}
  apart: {uses: toy.count, workers: {cpus: 4, gpus: 1}}
"""
    assert refused_resources(tmp_path, stages, (3.0, 1.0), (5.0, 0.0)) == [
        "4: much.workers: requests 9 times 1 CPUs and 0 GPUs, each on one node; 8 fit "
        "(lower much.workers.num or the resources per process, or use a larger cluster)",
        "6: fast.workers: requests 2 times 1 CPUs and 1 GPUs, each on one node; 1 fit "
        "(lower fast.workers.num or the resources per process, or use a larger cluster)",
        "8: apart.workers: requests 1 times 4 CPUs and 1 GPUs, each on one node; 0 fit "
        "(lower apart.workers.num or the resources per process, or use a larger cluster)",
    ]
    assert refused_resources(tmp_path, stages.splitlines()[4] + "\n", (3.0, 0.0), (3.0, 0.0)) == [
        "3: cut.workers: requests 3 times 2 CPUs and 0 GPUs, each on one node; 2 fit "
        "(lower cut.workers.num or the resources per process, or use a larger cluster)"
    ]
    assert refused_resources(tmp_path, stages.splitlines()[0] + "\n", (8.0, 0.0)) == []


@pytest.mark.usefixtures("toys")
def test_cached_stages_need_no_resources(tmp_path: Path) -> None:
    """Request nothing, as the runner does."""
    stages = "  wide: {uses: toy.count, workers: {num: 64}}\n"
    assert refused_resources(tmp_path, stages, (2.0, 0.0))
    store = Store(tmp_path / "store")
    made = spec_checker.load_spec(tmp_path / "toy.yaml")
    stage = make_plan(made, store).stages[0]
    out = store.work(stage.uses, stage.fingerprint) / "out"
    out.mkdir(parents=True)
    (out / "number.txt").write_text("1")
    with store.lease(stage.uses, stage.fingerprint, "test") as lease:
        assert lease.acquire()
        store.publish(
            PublishRequest(
                stage.uses,
                stage.fingerprint,
                kind=stage.kind,
                version=1,
                payload=stage.payload,
                inputs={},
                run={},
                seconds=0.0,
                code={"source_hash": stage.source_hash},
            ),
            lease=lease,
        )
    assert refused_resources(tmp_path, stages, (2.0, 0.0)) == []


def test_preflight_error_keeps_all_remedies() -> None:
    found = [UserError("a", remedy="do this"), Failure("b", remedy="do that"), Failure("c")]
    together = preflight.PreflightError([*found, Failure("d", remedy="do this")])
    assert together.remedy == "do this; do that"
    assert (str(together), together.exit_code) == ("a\nb\nc\nd", 2)
