"""Kinds are registered once, found by name, and know their readers."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from outside_package import install

from pipeline.errors import NotFound
from pipeline.kind import (
    KINDS,
    Kind,
    find_kind,
    headline_metrics,
    is_promotable,
    register_kind,
)
from pipeline.plugins import load_plugins
from stages.data import kinds as _kinds  # noqa: F401 - registers them before the fixture saves them


@pytest.fixture(autouse=True)
def kinds() -> Iterator[None]:
    before = dict(KINDS)
    yield
    KINDS.clear()
    KINDS.update(before)
    load_plugins.cache_clear()


def test_a_kind_is_registered_once() -> None:
    kind = register_kind(Kind("Soil", promotable=True))
    assert register_kind(Kind("Soil", promotable=True)) is not None
    assert find_kind("Soil") is kind
    assert is_promotable("Soil")
    with pytest.raises(TypeError, match="the kind Soil is registered already, as Kind"):
        register_kind(Kind("Soil"))


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(NotFound, match="unknown kind of artifact 'Tokenz'") as caught:
        find_kind("Tokenz", import_stages=False)
    assert caught.value.remedy == "did you mean 'Tokens'?"
    assert not is_promotable("Tokenz")


def test_a_package_adds_a_kind_with_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_plugins.cache_clear()
    install(
        tmp_path,
        monkeypatch,
        "wood",
        "from pipeline.kind import Kind, register_kind\n"
        "register_kind(Kind('WoodModel', promotable=True, reader='wood:open_wood'))\n"
        "def open_wood(path): return path.name\n",
    )
    assert is_promotable("WoodModel")
    assert pkgutil.resolve_name(find_kind("WoodModel").reader)(Path("a/oak")) == "oak"


def test_the_readers_of_our_kinds_exist() -> None:
    find_kind("Tokens")
    for kind in list(KINDS.values()):
        if kind.reader.startswith("stages."):
            assert callable(pkgutil.resolve_name(kind.reader))


def test_headline_metrics_of_a_kind_in_a_stage_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_stage_packages(*, modules: bool = False) -> None:
        if modules:
            register_kind(Kind("Bark", headline_metrics=("depth",)))

    monkeypatch.setattr("pipeline.kind.import_stage_packages", import_stage_packages)
    assert headline_metrics("Bark") == ("depth",)


def test_headline_metrics() -> None:
    assert headline_metrics("RewardModel") == ("accuracy", "loss")
    assert headline_metrics("Tokenz") == ()
