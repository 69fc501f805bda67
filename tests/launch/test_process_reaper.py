"""Processes with the mark end with their driver; other processes do not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_runs import until

from launch.process_reaper import DRIVER_DIED, Reaper, reap
from pipeline.storage.lease import process_start_time
from stages.distributed.output_capture import DRIVER_VARIABLE

SLEEPER = [sys.executable, "-S", "-c", "print(flush=True); input()"]


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def start(children: list[subprocess.Popen[bytes]], mark: str) -> subprocess.Popen[bytes]:
    """Start a process with a mark and wait until it runs."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(SLEEPER, env={**os.environ, DRIVER_VARIABLE: mark}, **pipes)
    children.append(process)
    assert process.stdout
    process.stdout.readline()
    return process


def test_only_marked_processes_are_killed(
    tmp_path: Path, children: list[subprocess.Popen[bytes]]
) -> None:
    ours, theirs = start(children, "ours"), start(children, "theirs")
    folder = tmp_path / "scratch"
    folder.mkdir()
    reap("ours", folder)
    assert ours.wait(5) == -signal.SIGKILL
    assert theirs.poll() is None
    assert not folder.exists()


def test_it_gives_up_after_its_timeout(
    tmp_path: Path, children: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = start(children, "ours")
    monkeypatch.setattr("launch.process_reaper.REAP_TIMEOUT", 0.0)
    reap("ours", tmp_path / "scratch")
    assert ours.poll() is None


def test_process_that_exits_meanwhile_is_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([[2**22 + 1], []])
    monkeypatch.setattr("launch.process_reaper._marked_processes", lambda mark: next(found))
    reap("ours", tmp_path / "scratch")
    assert next(found, None) is None


def test_close_kills_the_processes(
    tmp_path: Path,
    children: list[subprocess.Popen[bytes]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    reaper = Reaper("ours", tmp_path / "scratch")
    ours = start(children, "ours")
    reaper.close()
    assert ours.wait(5) == -signal.SIGKILL
    assert capfd.readouterr().err == ""


def test_killed_driver(tmp_path: Path, children: list[subprocess.Popen[bytes]]) -> None:
    ours = start(children, "ours")
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom launch.process_reaper import Reaper\n"
        "Reaper('ours', Path(sys.argv[1]))\nos.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "scratch")]
    ended = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    until(lambda: not process_start_time(ours.pid), 10)
    assert ended.stderr == DRIVER_DIED
