"""`make` on a machine that is not quite ready: what it mends, and what it says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def room(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    return tmp_path


def make(room: Path, *words: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}".strip(":")}
    return subprocess.run(
        ["make", "venv", *words], cwd=room, env=environment, capture_output=True, text=True
    )


def test_another_python_is_refused_with_the_line_to_type(room: Path) -> None:
    (room / "bin").mkdir()
    for name in ("python3", "python3.11"):
        program = room / "bin" / name
        program.write_text("#!/bin/sh\nexit 1\n")  # as Python 3.12 answers the question
        program.chmod(0o755)
    done = make(room, path=str(room / "bin"))
    assert done.returncode != 0
    assert "make install PYTHON=/path/to/python3.11" in done.stderr
    assert not (room / ".venv").exists()


@pytest.mark.integration
def test_an_environment_that_was_left_half_made_is_made_anew(room: Path) -> None:
    """As Ctrl-C leaves it before pip is there: the folder exists, and nothing can be installed."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", room / ".venv"], check=True)
    python = room / ".venv" / "bin" / "python"
    assert subprocess.run([python, "-c", "import pip"], stderr=subprocess.PIPE).returncode
    assert make(room, f"PYTHON={sys.executable}").returncode == 0
    subprocess.run([str(python), "-m", "pip", "--version"], check=True, capture_output=True)
    (room / ".venv" / "mark").touch()
    assert make(room, "PYTHON=no-such-python").returncode == 0
    assert (room / ".venv" / "mark").exists()
