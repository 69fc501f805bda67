from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from pathlib import Path

import pytest
import sample_run

from launch.tracking import mlflow_client
from launch.tracking.cursor import read_cursor
from launch.tracking.mirror import MAX_BACKOFF, Mirror, follow
from launch.tracking.mlflow_client import hide_credentials, writer_lock
from pipeline.errors import Failure, NotFound
from pipeline.storage.store import Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Store(tmp_path / "store")


def child(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make mirrors run this shell script instead of Python."""
    program = folder / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_tracking_uri(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mlflow_client.tracking_uri(store) == f"sqlite:///{store.root}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert mlflow_client.tracking_uri(store) == "http://tracker:5000"
    assert mlflow_client.tracking_uri(store, "sqlite:///x") == "sqlite:///x"


def test_ui_command(store: Store) -> None:
    command = mlflow_client.ui_command(store)
    assert command[:4] == [sys.executable, "-m", "mlflow", "server"]
    assert f"sqlite:///{store.root}/mlflow.db" in command
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert mlflow_client.ui_command(store, "https://me:pw@tracker/x")[-1] == "https://tracker/x"
    assert mlflow_client.ui_command_line(store).startswith(
        f"{sys.executable} -m mlflow server --backend"
    )


@pytest.mark.parametrize("secret", ["me:p/w@host", "me:p@w@host", "host/db?password=pw&user=me"])
def test_ui_command_line_hides_credentials(store: Store, secret: str) -> None:
    line = mlflow_client.ui_command_line(store, f"postgresql://{secret}")
    assert '--backend-store-uri "$MLFLOW_TRACKING_URI" --default' in line
    assert "pw" not in line
    assert "p/w" not in line


def test_credentials_are_hidden() -> None:
    assert (
        hide_credentials("cannot reach http://me:pw@host:1/a") == "cannot reach http://***@host:1/a"
    )
    assert hide_credentials("sqlite:////a/b@c") == "sqlite:////a/b@c"
    assert hide_credentials("postgresql://me:p/w@host/db?a=1") == "postgresql://***@host/db?a=1"
    assert (
        hide_credentials("mysql://h/db?user=me&password=pw&b=2")
        == "mysql://h/db?user=me&password=***&b=2"
    )


def test_follow_makes_a_last_pass() -> None:
    passes: list[str] = []

    def ended(_: float) -> bool:
        return len(passes) == 3

    assert follow(lambda: not passes.append("pass"), ended)
    assert len(passes) == 4


def test_back_off() -> None:
    waits: list[float] = []

    def ended(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 10

    answers = iter([False] * 7 + [True, False, False])
    assert not follow(lambda: next(answers), ended)
    assert waits == [0, 2, 4, 8, 16, 32, MAX_BACKOFF, MAX_BACKOFF, 2, 4]


def test_mlflow_errors_are_one_line_without_credentials() -> None:
    with pytest.raises(Failure) as caught, mlflow_client.mlflow_errors("http://a:b@c"):
        raise RuntimeError("refused by http://a:b@c\nlong\ntrace")
    assert str(caught.value) == "http://***@c: MLflow: refused by http://***@c"
    with pytest.raises(Failure, match="KeyError"), mlflow_client.mlflow_errors("x"):
        raise KeyError
    with pytest.raises(NotFound), mlflow_client.mlflow_errors("x"):
        raise NotFound("as it is")


def test_one_writer_at_a_time(store: Store) -> None:
    second = writer_lock(store, 0.1)
    with writer_lock(store, 0), pytest.raises(Failure, match="another process"), second:
        pytest.fail("two writers")
    with writer_lock(store, 0), (store.root / ".mlflow.db.lock").open() as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not os.get_inheritable(lock.fileno())


def test_failed_start_is_a_warning(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    run = sample_run.make(store.root, names=())
    (run.folder / "mlflow.log").mkdir()
    mirror = Mirror(store, run)
    mirror.start()
    assert "no MLflow mirror" in caplog.text
    assert not mirror.stop()


def test_stop_returns_whether_everything_was_sent(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sample_run.make(store.root, names=())
    mirror = Mirror(store, run, "sqlite:///secret-place")
    child(tmp_path, 'cat; echo "$@"; echo "$MLFLOW_TRACKING_URI"', monkeypatch)
    mirror.start()
    assert mirror.stop(20)
    output = (run.folder / "mlflow.log").read_text().split()
    assert output == ["-m", "launch.tracking.mirror", "follow", str(store.root), run.id, mirror.uri]
    child(tmp_path, "cat; exit 1", monkeypatch)
    mirror.start()
    assert not mirror.stop(20)


def test_stop_has_a_timeout(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = sample_run.make(store.root, names=())
    child(tmp_path, "exec sleep 60", monkeypatch)
    mirror = Mirror(store, run)
    mirror.start()
    started = time.monotonic()
    assert not mirror.stop(0.2)
    assert time.monotonic() - started < 10


def test_failed_sync_has_a_reason(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    run = sample_run.make(store.root, names=())
    mirror = Mirror(store, run)
    child(tmp_path, "exit 0", monkeypatch)
    mirror.sync()
    child(tmp_path, 'test "${PYTHONPATH##*:}" = /somewhere && exit 1; exit 0', monkeypatch)
    with pytest.raises(Failure, match="the mirror process died"):
        mirror.sync()
    (run.folder / "mlflow.json").write_text(json.dumps({"problem": "MLflow: refused"}))
    with pytest.raises(Failure, match="MLflow: refused"):
        mirror.sync()
    assert mirror.problem == "MLflow: refused"


def test_corrupt_cursor_is_empty(store: Store) -> None:
    run = sample_run.make(store.root, names=())
    assert read_cursor(run) == {}
    (run.folder / "mlflow.json").write_text("{")
    assert read_cursor(run) == {}
    (run.folder / "mlflow.json").write_text('{"parent": "x"}')
    assert read_cursor(run) == {"parent": "x"}
