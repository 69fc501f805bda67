"""Unknown commands and unexpected exceptions."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from command_calls import Call

from launch.cli import cli
from launch.ui.exit_handling import set_crash_log_dir
from pipeline.execution.run import Run


def test_unknown_command_suggests_the_nearest() -> None:
    done = CliRunner().invoke(cli, ["stauts"])
    assert done.exit_code == 2
    assert done.stderr == "error: no command 'stauts'\nnext: did you mean 'status'?\n"


def test_unexpected_exception_is_one_line_and_a_file(
    run: Run, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import launch.commands.status

    def broken(name: str, path: str) -> None:
        raise ZeroDivisionError("seven\nby nothing, not even by quince & medlar")

    monkeypatch.setattr(launch.commands.status, "find_run", broken)
    monkeypatch.setattr("launch.ui.exit_handling._CRASH_LOG_DIRS", [])
    monkeypatch.setattr("launch.ui.exit_handling._SECRET_NAMES", set())
    monkeypatch.setenv("ORCHARD_KEY", "quince & medlar")
    set_crash_log_dir(tmp_path, ["ORCHARD_KEY"])
    done = call("status", code=1)
    lines = done.stderr.splitlines()
    assert lines[0] == "error: ZeroDivisionError: seven"
    assert lines[2].startswith("next: headwater doctor")
    log = Path(lines[1].removeprefix("the traceback is in "))
    assert log.parent == tmp_path
    assert "by nothing, not even by ${env:ORCHARD_KEY}" in log.read_text()
    assert "quince" not in log.read_text()
