"""`logs` of runs, stages and ranks."""

from __future__ import annotations

import os
from pathlib import Path

from command_calls import Call

from pipeline.execution.run import Run


def write_logs(run: Run) -> None:
    for attempt in (1, 2, 10):
        folder = run.attempt_dir("gpt", attempt)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.txt").write_text(f"attempt {attempt}\ntorn")
        (folder / "rank-0.log").write_text("rank zero \x1b[31mred\n")
        (folder / "rank-1.log").write_text("rank one\n")
    run.attempt_dir("clean", 1).joinpath("log.txt").write_text("cleaning\n")


def test_logs(run: Run, call: Call) -> None:
    write_logs(run)
    assert call("logs").stdout.splitlines() == [
        "clean | cleaning",
        "gpt | attempt 10",
        "gpt | torn",
    ]
    assert call("logs", "latest", "gpt").stdout.splitlines() == [
        "attempt 10",
        "torn",
        "rank-0 | rank zero \\x1b[31mred",
        "rank-1 | rank one",
    ]
    assert call("logs", "latest", "gpt", "--rank", "1").stdout == "rank one\n"
    assert "attempt 2" in call("logs", "latest", "gpt", "--attempt", "2").stdout
    assert call("logs", "latest", "gpt", "-f").stdout.splitlines()[0] == "attempt 10"


def test_missing_logs(run: Run, call: Call) -> None:
    assert "did you mean 'gpt'?" in call("logs", "latest", "gtp", code=2).stderr
    assert "has no log (cached" in call("logs", "latest", "sft", code=2).stderr
    assert "has no log of rank 7" in call("logs", "latest", "sft", "--rank", "7", code=2).stderr


def test_closed_pipe_is_not_an_error(run: Run, tmp_path: Path) -> None:
    import subprocess
    import sys

    write_logs(run)
    run.attempt_dir("gpt", 10).joinpath("log.txt").write_text("line\n" * 200_000)
    command = [sys.executable, "-m", "launch.cli", "logs", "--store", str(run.store.root)]
    reading, writing = os.pipe()
    process = subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    os.read(reading, 10)
    os.close(reading)
    assert process.communicate(timeout=30)[1] == b""
    assert process.returncode == 1
