"""The files that belong to a stage, their hash and their commit."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch import source_code
from launch.source_code import code_version, source_files, source_hash
from pipeline.stage_registry import find_stage

PROJECT = {
    "mill/__init__.py": "",
    "mill/stages/__init__.py": "",
    "mill/stages/grind.py": '''
        """Grinds; from mill.unused import nothing in prose with a word before it."""
        import json
        from mill import (
            stones,  # a module
            wheel,
        )
        from . import sieve
        from ..water import flow as stream
        LATE = "mill.sacks:Sack"
        def run():
            from mill.late import miller
        def other(): import_me = "mill.notes.txt"
    ''',
    "mill/stages/sieve.py": "from ..mesh import size",
    "mill/stones/__init__.py": "from mill.stones.granite import hard",
    "mill/stones/granite.py": "import numpy",
    "mill/stones/marble.py": "",
    "mill/wheel.py": "import helper.gears as gears, os",
    "mill/water.py": "flow = 1",
    "mill/sacks.py": "",
    "mill/late.py": "from mill.stages import grind",
    "mill/mesh.py": "",
    "mill/unused.py": "",
    "helper/__init__.py": "",
    "helper/gears.py": "",
}
FILES = {
    *("mill", "mill.stages", "mill.stages.grind", "mill.stages.sieve", "mill.mesh"),
    *("mill.stones", "mill.stones.granite", "mill.wheel", "mill.water", "mill.sacks", "mill.late"),
    *("helper", "helper.gears"),
}
"""Modules that `grind` imports, at any distance."""


def write_project(root: Path) -> Path:
    for name, text in PROJECT.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line[8:] for line in text.split("\n")) if "\n" in text else text)
    return root


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write a package with a stage; it is only read, so that it needs no import."""
    yield from import_stage(write_project(tmp_path / "src"), monkeypatch)


def import_stage(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    module = SimpleNamespace(__file__=str(root / "mill" / "stages" / "grind.py"))
    monkeypatch.setitem(sys.modules, "mill.stages.grind", module)  # type: ignore[arg-type]
    yield root


def stage(module: str) -> Any:
    return SimpleNamespace(run=SimpleNamespace(__module__=module))


def test_a_stage_has_the_files_that_it_imports(project: Path) -> None:
    files = source_files("mill.stages.grind")
    assert set(files) == FILES
    assert files["mill.stones"] == project / "mill" / "stones" / "__init__.py"


@pytest.mark.parametrize("module", sorted(FILES))
def test_each_of_them_decides_the_hash(project: Path, module: str) -> None:
    before = source_hash(stage("mill.stages.grind"))
    path = source_files("mill.stages.grind")[module]
    path.write_text(path.read_text() + "\nX = 1\n")
    after = source_hash(stage("mill.stages.grind"))
    assert len(before) == len(after) == 64
    assert before != after


@pytest.mark.parametrize("name", ["mill/unused.py", "mill/stones/marble.py", "mill/notes.txt"])
def test_no_other_file_decides_it(project: Path, name: str) -> None:
    before = source_hash(stage("mill.stages.grind"))
    (project / name).write_text("changed = True")
    assert source_hash(stage("mill.stages.grind")) == before


def test_of_installed_packages_only_the_stages_own_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_project(tmp_path / "lib" / "site-packages")
    for _ in import_stage(root, monkeypatch):
        assert set(source_files("mill.stages.grind")) == FILES - {"helper", "helper.gears"}


def test_without_a_file_there_is_no_hash(project: Path) -> None:
    assert source_hash(stage("mill.nothing")) == ""
    (project / "mill" / "stages" / "grind.py").unlink()
    assert source_hash(stage("mill.stages.grind")) == ""


def test_training_follows_registries_and_the_schedule() -> None:
    files = set(source_files(find_stage("pretrain").run.__module__))
    wanted = {"lr_schedule", "trainer", "engine", "checkpoint", "optim.muon"}
    assert {f"stages.training.{name}" for name in wanted} <= files
    assert {"stages.models.llama.modeling_llama", "pipeline.context"} <= files
    assert not {name for name in files if name.split(".")[0] not in ("stages", "pipeline")}
    assert "stages.ppo" not in files


def test_plugins_count_where_a_stage_loads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gifts.py").write_text("import gifts_of_others")
    (tmp_path / "gifts_of_others.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "gifts_of_others.py").touch()
    importlib.import_module("gifts")
    monkeypatch.setattr(source_code, "load_plugins", lambda: ("gifts",))
    added = {"gifts", "gifts_of_others"}
    assert added <= set(source_files(find_stage("pretrain").run.__module__))
    assert not added & set(source_files(find_stage("python_questions").run.__module__))
    del sys.modules["gifts"], sys.modules["gifts_of_others"]


# --- the commit --------------------------------------------------------------------------------


def git(root: Path, *words: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    command = ["git", "-C", str(root), *author, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def commit(project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HEADWATER_COMMIT", "the image")
    monkeypatch.setenv("HEADWATER_JOB_COMMIT", "the job")
    git(project.parent, "init", "-q")
    git(project.parent, "add", "src/mill")
    git(project.parent, "commit", "-qm", "mill")
    return git(project.parent, "rev-parse", "HEAD")


def version() -> dict[str, Any]:
    return code_version(stage("mill.stages.grind"))


def test_a_stage_of_a_user_has_the_commit_of_its_own_checkout(project: Path, commit: str) -> None:
    assert version() == {"commit": commit, "dirty": False}
    (project / "data.csv").touch()
    assert version() == {"commit": commit, "dirty": False}, "git does not track it"
    (project / "mill" / "mesh.py").write_text("size = 2")
    assert version() == {"commit": commit, "dirty": True}


def test_a_stage_that_is_not_committed_is_dirty(project: Path, commit: str) -> None:
    git(project.parent, "rm", "-q", "--cached", "src/mill/stages/grind.py")
    git(project.parent, "commit", "-qm", "out")
    assert version() == {"commit": git(project.parent, "rev-parse", "HEAD"), "dirty": True}


def test_a_package_inside_another_checkout_has_not_its_commit(project: Path, commit: str) -> None:
    """Ignore the package, as git does with a virtual environment in the folder of a project."""
    git(project.parent, "rm", "-rq", "--cached", "src")
    (project.parent / ".gitignore").write_text("src/\n")
    assert version() == {"commit": None, "dirty": False}


@pytest.mark.parametrize(
    ("folder", "name", "commit"),
    [
        ("_ray_pkg_0a1b", "mill.stages.grind", "job"),
        ("_ray_pkg_0a1b", "stages.grind", "job"),
        ("site-packages", "mill.stages.grind", None),
        ("site-packages", "stages.grind", "image"),
    ],
)
def test_code_without_git_has_the_commit_that_it_was_shipped_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, name: str, commit: str | None
) -> None:
    monkeypatch.setenv("HEADWATER_COMMIT", "image+dirty")
    monkeypatch.setenv("HEADWATER_JOB_COMMIT", "job+dirty")
    module = SimpleNamespace(__file__=str(tmp_path / folder / "stages" / "grind.py"))
    monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    assert code_version(stage(name)) == {"commit": commit, "dirty": commit is not None}
