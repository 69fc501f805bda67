"""Relative paths mean what they meant where `run` was typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.ui.options import store_flag
from launch.ui.working_directory import in_run_directory, invocation_directory
from pipeline.execution.run import Run
from pipeline.storage.store import Store


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "a.txt").write_text("a")
    return folder


@pytest.fixture
def run(tmp_path: Path, home: Path) -> Run:
    made = Run(Store(tmp_path / "store"), "calm-heron")
    made.folder.mkdir(parents=True)
    stages = "{a: {uses: a, sources: [data/*.txt]}}"
    (made.folder / "run.yaml").write_text(f"{{name: p, seed: 0, stages: {stages}}}")
    made.append("run.created", root=str(home))
    return made


def where(run: Run) -> Path:
    with in_run_directory(run):
        return Path.cwd()


def test_a_run_goes_on_where_it_was_begun(
    run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert where(run) == home
    assert Path.cwd() == tmp_path


def test_what_is_said_is_for_the_shell_in_which_it_was_typed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HEADWATER_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    with in_run_directory(run):
        assert invocation_directory() == tmp_path
        assert store_flag(Store(tmp_path / "headwater-store")) == ""
        assert store_flag(Store("headwater-store")) != ""


def test_without_its_folder_it_goes_on_here(
    run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home.rename(tmp_path / "moved")
    assert where(run) == tmp_path


@pytest.mark.parametrize("shipped", ["all", "nothing"])
def test_a_job_leaves_what_was_shipped_only_for_what_was_not(
    run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shipped: str
) -> None:
    package = tmp_path / "_ray_pkg_0123456789abcdef"
    (package / "data").mkdir(parents=True)
    if shipped == "all":
        (package / "data" / "a.txt").write_text("a")
    monkeypatch.chdir(package)
    assert where(run) == (package if shipped == "all" else home)
