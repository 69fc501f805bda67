"""Modules of other packages are found by their entry point, and imported once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from outside_package import install

from pipeline.errors import UserError
from pipeline.plugins import load_plugins


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    load_plugins.cache_clear()
    yield
    load_plugins.cache_clear()


def test_each_plugin_is_imported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "plugin_one", "count = globals().get('count', 0) + 1\n")
    assert "plugin_one" in load_plugins()
    assert load_plugins() is load_plugins()
    assert sys.modules["plugin_one"].count == 1


def test_a_plugin_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "plugin_two", "1 / 0\n")
    with pytest.raises(UserError, match="plugin plugin_two cannot be imported: ZeroDivisionError"):
        load_plugins()


def test_a_plugin_whose_module_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "plugin_three", "")
    (tmp_path / "plugin_three.py").unlink()
    with pytest.raises(UserError, match="the plugin plugin_three does not exist"):
        load_plugins()
