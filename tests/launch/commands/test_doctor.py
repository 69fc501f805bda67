"""The checks, each on a machine with that one fault."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from launch.cli import cli
from launch.commands import doctor


@pytest.fixture(autouse=True)
def healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    for name in ("RAY_AUTH_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def examined(tmp_path: Path) -> dict[str, doctor.Finding]:
    return {finding.check: finding for finding in doctor.run_checks(str(tmp_path / "store"))}


def test_this_machine_passes(tmp_path: Path) -> None:
    findings = examined(tmp_path)
    assert findings["torch"].found.startswith("2.13.0")
    findings.pop("open servers")  # other programs of this machine are not the test's
    assert {f.level for f in findings.values()} <= {"ok", "warn"}, findings


def test_json_and_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["doctor", "--json", "--store", str(tmp_path)]
    monkeypatch.setattr(doctor, "list_listeners", list)
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0
    assert {"check", "level", "found", "remedy"} == set(json.loads(done.stdout)[0])
    monkeypatch.setitem(doctor.MIN_VERSIONS, "ray", "99.0")
    done = CliRunner().invoke(cli, words[:1] + words[2:])
    assert done.exit_code == 1
    assert "older than 99.0" in done.stdout
    assert "1 checks failed" in done.stdout


def test_stale_compile_lock(tmp_path: Path) -> None:
    lock = tmp_path / "extensions" / "py311" / "op" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert examined(tmp_path)["compile locks"].level == "ok"
    old = time.time() - 2 * doctor.STALE_LOCK_AGE
    os.utime(lock, (old, old))
    finding = examined(tmp_path)["compile locks"]
    assert (finding.level, finding.remedy) == ("fail", f"rm {lock}")


def test_disabled_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(doctor, "list_listeners", list)
    assert examined(tmp_path)["Ray tokens"].level == "warn"
    listener = doctor.Listener("192.0.2.1", 8265, "Ray")
    monkeypatch.setattr(doctor, "list_listeners", lambda: [listener])
    monkeypatch.setattr(doctor, "_service", lambda listener: "")
    finding = examined(tmp_path)["Ray tokens"]
    assert finding.level == "fail"
    assert "192.0.2.1:8265" in finding.found


def test_every_socket_beyond_loopback_is_listed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as private, socket.create_server(("", 0)) as open_:
        ports = {listener.port for listener in doctor.list_listeners()}
        assert open_.getsockname()[1] in ports
        assert private.getsockname()[1] not in ports


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("ray::RuntimeEnvAgent", "Ray"),
        ("/venv/site-packages/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp", "Ray"),
        ("python -m mlflow server --port 5000", "MLflow"),
        ("/venv/bin/headwater run p.yaml", "Headwater"),
        ("python -m stages.training.ranks.rank_process", "Headwater"),
        ("sshd -D", ""),
    ],
)
def test_programs_are_identified_by_their_command_lines(command: str, program: str) -> None:
    found = [name for name, words in doctor.PROGRAMS.items() if words.search(command)]
    assert found == [program] * bool(program)


@contextmanager
def serve(bound: str, path: str, body: bytes) -> Iterator[int]:
    """Answer one path at an address, and yield the port."""

    class Head(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == path else 404)
            self.end_headers()
            self.wfile.write(body if self.path == path else b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer((bound, 0), Head) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("bound", "seen"), [("127.0.0.2", "127.0.0.2"), ("0.0.0.0", "0.0.0.0"), ("127.0.0.1", "::")]
)
def test_open_server_is_queried_at_its_own_address(bound: str, seen: str) -> None:
    """Query each server at its own address: it may answer on no other."""
    with serve(bound, "/api/version", b'{"ray_version": "2.60.0"}') as port:
        answers = doctor._service(doctor.Listener(seen, port, ""))
    assert answers == ("" if seen == "::" else "Ray")
    assert doctor._service(doctor.Listener(seen, port, "")) == ""


@pytest.mark.parametrize(
    ("path", "body", "program", "level", "what"),
    [
        ("/api/version", b'{"ray_version": "2.60.0"}', "", "fail", "(Ray)"),
        ("/version", b"3.7.1", "Ray", "fail", "(MLflow)"),
        ("/metrics", b"# HELP ray_tasks Tasks\nray_tasks 1\n", "", "warn", "(metrics of Ray)"),
        ("/other", b"", "Headwater", "warn", "(Headwater)"),
        ("/metrics", b"# HELP other_tasks Tasks\n", "", "ok", "no server"),
    ],
)
def test_open_servers_by_what_they_answer(
    path: str, body: bytes, program: str, level: str, what: str
) -> None:
    with serve("0.0.0.0", path, body) as port:
        finding = doctor._open_servers([doctor.Listener("0.0.0.0", port, program)])
    assert finding.level == level
    assert what in finding.found


@pytest.mark.parametrize(
    ("text", "level", "found"),
    [
        ("address: http://ray.example.com:8265\n", "fail", "has no token"),
        ("address: http://ray.example.com:8265\ntoken_env: T\n", "warn", "unencrypted"),
        ("address: https://ray.example.com\ntoken_env: T\n", "ok", "https://ray.example.com"),
        ("address: http://127.0.0.1:8265\ntoken_path: token\n", "fail", "other users can read"),
        ("adress: http://127.0.0.1:8265\n", "fail", "unknown key"),
    ],
)
def test_clusters(tmp_path: Path, text: str, level: str, found: str) -> None:
    folder = tmp_path / "configs" / "clusters"
    folder.mkdir(parents=True)
    (tmp_path / "token").write_text("t")
    (tmp_path / "token").chmod(0o644)
    (folder / "mine.yaml").write_text(text)
    finding = examined(tmp_path)["cluster mine"]
    assert finding.level == level
    assert found in finding.found


def test_long_temporary_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/tmp/" + "x" * 40)
    assert examined(tmp_path)["temporary"].level == "fail"


def test_mlflow_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    assert examined(tmp_path)["MLflow"].level == "warn"
