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
    """A `make` that knows nothing of one that these tests may run under."""
    environment = {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}".strip(":")}
    environment.pop("MAKEFLAGS", None)
    return subprocess.run(
        ["make", *words], cwd=room, env=environment, capture_output=True, text=True
    )


def test_another_python_is_refused_with_the_line_to_type(room: Path) -> None:
    (room / "bin").mkdir()
    for name in ("python3", "python3.11"):
        program = room / "bin" / name
        program.write_text("#!/bin/sh\nexit 1\n")  # as Python 3.12 answers the question
        program.chmod(0o755)
    done = make(room, "venv", path=str(room / "bin"))
    assert done.returncode != 0
    assert "make install PYTHON=/path/to/python3.11" in done.stderr
    assert not (room / ".venv").exists()


@pytest.mark.integration
def test_an_environment_that_was_left_half_made_is_made_anew(room: Path) -> None:
    """As Ctrl-C leaves it before pip is there: the folder exists, and nothing can be installed."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", room / ".venv"], check=True)
    python = room / ".venv" / "bin" / "python"
    assert subprocess.run([python, "-c", "import pip"], stderr=subprocess.PIPE).returncode
    assert make(room, "venv", f"PYTHON={sys.executable}").returncode == 0
    subprocess.run([str(python), "-m", "pip", "--version"], check=True, capture_output=True)
    (room / ".venv" / "mark").touch()
    assert make(room, "venv", "PYTHON=no-such-python").returncode == 0
    assert (room / ".venv" / "mark").exists()


# A suite says that it begins and, once as many have begun as are wanted, that it ends.
SUITE = """#!/bin/sh
echo "$(basename $0) $2" >> begun
echo "begins: $2"
for _ in $(seq 300); do [ $(wc -l < begun) -lt {together} ] || break; sleep 0.1; done
[ $(wc -l < begun) -ge {together} ] || exit 9
echo "ends: $2"
case "$(basename $0) $2" in {fails}) exit 1;; esac
"""
FAST = "not integration and not faults and not readme and not long"
SUITES = ["(integration or readme) and not long", FAST, "faults"]


def run_suites(room: Path, together: int, fails: str) -> subprocess.CompletedProcess[str]:
    """`make test` with programs in place of ruff, mypy and pytest."""
    (room / ".venv" / "bin").mkdir(parents=True)
    for name in ("constraints.txt", "pyproject.toml"):
        (room / name).touch()
    (room / ".venv" / ".installed").touch()
    suite = SUITE.format(together=together, fails=fails)
    for name, text in {"ruff": "#!/bin/sh\n", "mypy": "#!/bin/sh\n", "pytest": suite}.items():
        program = room / ".venv" / "bin" / name
        program.write_text(text)
        program.chmod(0o755)
    return make(room, "test")


def test_two_suites_run_at_a_time_and_each_speaks_in_one_piece(room: Path) -> None:
    done = run_suites(room, 2, "nothing")
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith(("begins", "ends"))]
    assert sorted(said[::2]) == sorted(f"begins: {suite}" for suite in (*SUITES, FAST))  # in two
    assert [line.partition(" ")[2] for line in said[::2]] == [
        line.partition(" ")[2] for line in said[1::2]
    ]


@pytest.mark.parametrize("suite", SUITES)
def test_one_suite_that_fails_fails_all(room: Path, suite: str) -> None:
    done = run_suites(room, 1, f'"pytest {suite}"')
    assert done.returncode != 0
    assert f"ends: {suite}" in done.stdout
