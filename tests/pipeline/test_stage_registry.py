"""Stages are found by their names, in every package of stages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import orchard  # registers stages
import pytest

from pipeline import plugins
from pipeline.errors import NotFound, UserError
from pipeline.kind import KINDS, is_promotable
from pipeline.plugins import stage_packages
from pipeline.stage import Stage
from pipeline.stage_registry import all_stages, find_stage

assert orchard


@pytest.fixture
def registry() -> Iterator[dict[str, Stage]]:
    before = dict(Stage.registry)
    yield Stage.registry
    Stage.registry.clear()
    Stage.registry.update(before)


@pytest.fixture
def package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: dict[str, Stage]
) -> Iterator[Path]:
    """A user's package `grove` with stages of its own, found by its entry point; no other."""
    folder = tmp_path / "grove"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "workshop").mkdir()
    (folder / "workshop" / "__init__.py").write_text("raise RuntimeError('not a stage')")
    (folder / "nuts.py").write_text(
        "from pipeline.kind import Kind, register_kind\n"
        "from pipeline.stage import Params, stage\n"
        "register_kind(Kind('Nuts'))\n"
        "@stage('nuts.crack', output='Nuts', version=1)\n"
        "def crack(params: Params, inputs, out, ctx):\n"
        "    '''Crack nuts.\n\n    All of them.'''\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [EntryPoint("grove", "grove", "headwater.stages")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if "stages" in group else ())
    stage_packages.cache_clear()
    yield folder
    stage_packages.cache_clear()
    KINDS.pop("Nuts", None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "grove"]:
        del sys.modules[name]


def test_a_users_package_adds_stages(package: Path) -> None:
    assert stage_packages() == ("stages", "grove")
    found = find_stage("nuts.crack")
    assert (found.uses, found.summary) == ("nuts.crack", "Crack nuts.")
    assert find_stage("nuts.crack") is found


def test_every_stage_is_listed_by_name(package: Path) -> None:
    listed = [stage.uses for stage in all_stages()]
    assert listed == sorted(listed)
    assert {"nuts.crack", "orchard.plant", "clean"} <= set(listed)


@pytest.mark.parametrize("uses", ["nuts.krack", "nut.crack", "nuts/crack", "", "..nuts.crack"])
def test_an_unknown_stage_names_the_nearest(package: Path, uses: str) -> None:
    with pytest.raises(NotFound, match="unknown stage ") as caught:
        find_stage(uses)
    assert caught.value.exit_code == 2
    expected = "known: " if not uses else "did you mean 'nuts.crack'?"
    assert caught.value.remedy.startswith(expected)


def test_a_stage_whose_module_lacks_a_package(package: Path) -> None:
    (package / "pears.py").write_text("import no_such_package")
    with pytest.raises(UserError) as caught:
        find_stage("pears")
    message = "the stage module grove.pears needs 'no_such_package', which is not installed"
    assert caught.value.message == message
    assert caught.value.remedy == "pip install no_such_package"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("\ndef pears(:\n", 2, "SyntaxError: invalid syntax"),
        ("from pathlib import Pears\n", 1, "ImportError: cannot import name 'Pears' from 'pathl"),
        ("x = 1\nimport json\njson.loads('')\n", 3, "JSONDecodeError: Expecting value"),
    ],
)
def test_a_stage_module_with_a_mistake_names_its_line(
    package: Path, text: str, line: int, said: str
) -> None:
    file = package / "pears.py"
    file.write_text(text)
    for find in (lambda: find_stage("pears"), all_stages):
        with pytest.raises(UserError) as caught:
            find()
        assert caught.value.exit_code == 2
        assert caught.value.where == f"{file}:{line}"
        assert caught.value.message.startswith(
            f"the stage module grove.pears cannot be imported: {said}"
        )


def test_a_mistake_in_the_package_itself_is_named_too(package: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "grove"]:
        del sys.modules[name]
    (package / "__init__.py").write_text("\nraise ValueError('no grove')\n")
    with pytest.raises(UserError) as caught:
        find_stage("pears")
    assert caught.value.where == f"{package / '__init__.py'}:2"


def test_a_package_that_is_gone_offers_nothing(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "stage_packages", lambda: ("stages", "cleared"))
    assert "clean" in [stage.uses for stage in all_stages()]


def test_a_kind_in_a_stage_module_is_found_by_name(package: Path) -> None:
    assert "Nuts" not in KINDS
    assert not is_promotable("Nuts")
    assert "Nuts" in KINDS
