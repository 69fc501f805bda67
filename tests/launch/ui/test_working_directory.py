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


def test_run_continues_in_its_directory(
    run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert where(run) == home
    assert Path.cwd() == tmp_path


def test_store_flag_refers_to_the_invocation_directory(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HEADWATER_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    with in_run_directory(run):
        assert invocation_directory() == tmp_path
        assert store_flag(Store(tmp_path / "headwater-store")) == ""
        assert store_flag(Store("headwater-store")) != ""


def test_missing_directory_falls_back_to_the_current_one(
    run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    home.rename(tmp_path / "moved")
    assert where(run) == tmp_path


@pytest.mark.parametrize("shipped", ["all", "nothing"])
def test_job_leaves_the_package_only_for_missing_paths(
    run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shipped: str
) -> None:
    package = tmp_path / "_ray_pkg_0123456789abcdef"
    (package / "data").mkdir(parents=True)
    if shipped == "all":
        (package / "data" / "a.txt").write_text("a")
    monkeypatch.chdir(package)
    assert where(run) == (package if shipped == "all" else home)
