"""Where an artifact came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.storage import provenance as module
from pipeline.storage.provenance import code_version, environment


@pytest.fixture
def fresh_code() -> object:
    code_version.cache_clear()
    yield
    code_version.cache_clear()


def test_the_commit_comes_from_git(fresh_code: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADWATER_COMMIT", raising=False)
    answers = {"rev-parse": "abc", "status": " M x"}
    monkeypatch.setattr(module, "_git", lambda command, *_: answers[command])
    assert code_version() == {"commit": "abc", "dirty": True}


def test_without_git_there_is_no_commit(
    fresh_code: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HEADWATER_COMMIT", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_version() == {"commit": None, "dirty": False}


def test_git_answers_in_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    git = module._git("--version")
    assert git is None or git.startswith("git version")


@pytest.mark.parametrize(("shipped", "dirty"), [("abc", False), ("abc+dirty", True)])
def test_shipped_code_names_its_commit(
    fresh_code: None, monkeypatch: pytest.MonkeyPatch, shipped: str, dirty: bool
) -> None:
    monkeypatch.setenv("HEADWATER_COMMIT", shipped)
    assert code_version() == {"commit": "abc", "dirty": dirty}


def test_the_environment_lists_what_is_installed() -> None:
    known = environment()
    assert known["python"].startswith("3.")
    assert "numpy" in known["packages"]
    assert json.dumps(known)
