"""What is refused before a job exists; the head itself is asked in tests/integration."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from launch import preflight
from launch.jobs import Capacity, Jobs, Unreachable
from pipeline import spec
from pipeline.errors import Failure, SpecError, UserError


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


def test_nobody_there(closed: str) -> None:
    with pytest.raises(Unreachable, match="no Ray head answers: connection refused"):
        Jobs(closed).version()


def test_somebody_else_there(server: str) -> None:
    with pytest.raises(Unreachable, match="what answers is not a Ray head"):
        Jobs(server).version()


def test_somebody_silent_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        with pytest.raises(Unreachable, match="silence for 2 s"):
            Jobs(f"http://127.0.0.1:{silent.getsockname()[1]}").version()
        assert time.monotonic() - begun < 4.0


def test_mlflow_is_asked_for_its_health(server: str, closed: str) -> None:
    preflight.mlflow(None)
    preflight.mlflow("sqlite:///x.db")
    preflight.mlflow(server)
    with pytest.raises(Failure, match="MLflow does not answer: it answers 500"):
        preflight.mlflow(f"{server}/ill")
    with pytest.raises(Failure, match="connection refused"):
        preflight.mlflow(closed)


def test_a_password_in_the_address_is_not_sent_and_not_shown() -> None:
    with pytest.raises(UserError, match="holds a password") as refused:
        preflight.mlflow("http://me:hunter2@mlflow:5000")
    assert "hunter2" not in str(refused.value) + refused.value.remedy


def test_the_store_is_tried(tmp_path: Path) -> None:
    preflight.store(tmp_path / "new" / "store")
    assert list((tmp_path / "new" / "store").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the store is not writable: not a directory"):
        preflight.store(tmp_path / "file" / "store")


@pytest.mark.usefixtures("toys")
def test_what_can_never_be_placed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(
        "name: toy\n"
        "stages:\n"
        "  fits: {uses: toy.count, workers: {num: 8, cpus: 1}}\n"
        "  much: {uses: toy.count, workers: {num: 9}}\n"
        "  broad: {uses: toy.count, workers: {cpus: 5}}\n"
        "  fast: {uses: toy.count, workers: {num: 2, gpus: 1}}\n"
    )
    capacity = Capacity(nodes=2, cpus=8, gpus=1, largest_cpus=4, largest_gpus=1)
    with pytest.raises(SpecError) as refused:
        preflight.resources(spec.load(file), capacity)
    assert [str(problem) for problem in refused.value.problems] == [
        f"{file}:4: much.workers: asks for 9 CPUs, the cluster has 8 "
        "(lower much.workers.num or name a larger cluster)",
        f"{file}:5: broad.workers: asks for 5 CPUs a process, the largest node has 4 "
        "(lower broad.workers.cpus)",
        f"{file}:6: fast.workers: asks for 2 GPUs, the cluster has 1 "
        "(lower fast.workers.num or name a larger cluster)",
    ]


def test_each_thing_in_the_way_keeps_its_remedy() -> None:
    found = [UserError("a", remedy="do this"), Failure("b", remedy="do that"), Failure("c")]
    together = preflight.Checks([*found, Failure("d", remedy="do this")])
    assert together.remedy == "do this; do that"
    assert (str(together), together.exit_code) == ("a\nb\nc\nd", 2)
