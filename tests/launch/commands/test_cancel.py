"""Cancellation of runs without a driver; the active runs of a cluster."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sample_run
from click.testing import CliRunner

from launch.cli import cli
from launch.cluster.config import Cluster, load_cluster
from launch.cluster.job_submission import submit_job
from launch.commands import cluster
from pipeline.errors import Failure, Interrupted
from pipeline.execution.run import Run
from pipeline.storage.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def call(command: str, store: Store, code: int = 0) -> str:
    done = CliRunner().invoke(cli, [command, "--store", str(store.root)], prog_name="headwater")
    assert done.exit_code == code, done.output
    return done.output


def test_cancel_before_the_run_started(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = sample_run.make(store.root, names=())
    run.journal.path.write_text("".join(run.journal.path.read_text().splitlines(keepends=True)[:2]))
    monkeypatch.setattr("launch.commands.cancel.START_TIMEOUT", 0.1)
    assert "was cancelled before it started" in call("cancel", store)
    assert run.status().state == "cancelled"
    assert "is already over: cancelled" in call("cancel", store)


@dataclass
class Head:
    """Head with fixed answers."""

    address: str
    answers: dict[str, Any]


@pytest.fixture
def head() -> Iterator[Head]:
    answers: dict[str, Any] = {}

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path not in answers:
                return self.send_error(404)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answers[self.path]).encode())
            return None

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Head(f"http://127.0.0.1:{server.server_address[1]}", answers)
        server.shutdown()
        thread.join()


def submitted(store: Store, address: str) -> tuple[Run, Cluster]:
    """Make a run that was interrupted on a cluster."""
    run = sample_run.make(store.root, names=("clean",), finish=False)
    file = store.root / "far.yaml"
    file.write_text(f"address: {address}\n")
    record = {"cluster": str(file), "root": "", "jobs": [run.id]}
    (run.folder / "job.json").write_text(json.dumps(record))
    return run, load_cluster(str(file), str(store.root))


def test_cancel_while_the_head_does_not_answer(store: Store) -> None:
    run, _ = submitted(store, "http://127.0.0.1:9")
    run.append("run.resubmitted")
    output = call("cancel", store, code=1)
    assert "no Ray head answers" in output
    assert f"headwater cancel {run.id}" in output
    assert run.status().state == "pending"
    assert run.cancel_file.exists()  # its job stops at once


def test_active_runs_are_named_by_run_not_by_job(
    store: Store, head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, far = submitted(store, head.address)
    second = {"submission_id": f"{run.id}-2", "metadata": {"run": run.id}}
    other = {"submission_id": "other-job", "metadata": None}
    active = {"type": "SUBMISSION", "status": "RUNNING"}
    head.answers["/api/jobs/"] = [{**active, **second}, {**active, **other}]
    assert cluster.active_runs(far) == [run.id, "other-job"]
    head.answers["/api/jobs/"] = [{**active, **second}]
    monkeypatch.setattr(cluster, "FINALIZE_SECONDS", 0)  # it is over, and its job only winds up
    assert cluster.active_runs(far) == [run.id]


def test_a_cancelled_run_is_not_submitted(store: Store, head: Head) -> None:
    run, far = submitted(store, head.address)
    run.append("run.resubmitted")
    run.cancel_file.write_text("cancel\n")
    with pytest.raises(Interrupted, match="cancelled before submission"):
        submit_job(run, far, None)
    assert run.status().state == "cancelled"
    with pytest.raises(Failure):  # asked for anew, it is sent: this head takes no jobs
        submit_job(run, far, None)
    assert run.status().state == "pending"
    assert not run.cancel_file.exists()
