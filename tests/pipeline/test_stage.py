"""How a stage is declared, found and called."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any

import orchard
import pytest
from pydantic import BaseModel, ValidationError

from pipeline import stage_registry
from pipeline.context import Context
from pipeline.errors import InputError, NotFound, UserError
from pipeline.redaction import resolve_secrets
from pipeline.stage import (
    EXECUTION,
    Input,
    Inputs,
    Params,
    Section,
    Stage,
    execution_fields,
    nested_sections,
    stage,
)
from pipeline.stage_registry import all_stages, find_stage, stage_packages


@dataclass
class Made:
    """As much of an artifact as a stage reads."""

    path: Path


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
        "from pipeline.stage import Params, stage\n"
        "@stage('nuts.crack', output='Nuts', version=1)\n"
        "def crack(params: Params, inputs, out, ctx):\n"
        "    '''Crack nuts.\n\n    All of them.'''\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [EntryPoint("grove", "grove", stage_registry.ENTRY_POINT_GROUP)]
    monkeypatch.setattr(stage_registry, "entry_points", lambda group: points)
    stage_packages.cache_clear()
    yield folder
    stage_packages.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "grove"]:
        del sys.modules[name]


# --- declaring ---------------------------------------------------------------------------------


def test_a_declared_stage_knows_its_types(registry: dict[str, Stage]) -> None:
    found = registry["orchard.press"]
    assert (found.output, found.version, found.params) == ("Juice", 1, orchard.Press)
    assert found.inputs == {
        "trees": Input(("Trees",)),
        "more": Input(("Trees",), optional=True, many=True),
        "yeast": Input(("Yeast", "Trees"), optional=True),
    }
    assert found.run is orchard.press
    assert found.summary == "Press juice."


def test_the_short_forms_of_an_input() -> None:
    assert str(Input.parse("Text")) == "Text"
    assert str(Input.parse("Text|Number?")) == "Text or Number (optional)"
    assert str(Input.parse("Text*")) == "Text list"
    declared = Input(("Text",), many=True)
    assert Input.parse(declared) is declared


def declare(uses: str, params: type[Params], **inputs: str) -> None:
    def run(params: Any, inputs: Inputs, out: Path, ctx: Context) -> None: ...

    run.__annotations__["params"] = params
    stage(uses, output="Text", version=1, inputs=inputs)(run)


class Nested(Section):
    where: Path | None = None


class Hidden(Params):
    nested: tuple[Nested, ...] = ()


class Halfway(Params):
    size: Annotated[int, EXECUTION] | None = None


class Uses(Params):
    uses: str = ""


@pytest.mark.parametrize(
    ("uses", "params", "inputs", "message"),
    [
        ("Bad Name", Params, {}, "stage 'Bad Name': a name matches "),
        ("s", orchard.Plant, {"rows": "Text"}, "stage s: 'rows' is both a parameter and a word"),
        ("s", Uses, {}, "stage s: 'uses' is both a parameter and a word of the file"),
        ("s", Hidden, {}, "stage s: Nested.where: write a path as `str`"),
        ("s", Halfway, {}, "stage s: Halfway.size: EXECUTION marks a whole field"),
    ],
)
def test_what_would_go_wrong_quietly_is_refused_at_once(
    registry: dict[str, Stage],
    uses: str,
    params: type[Params],
    inputs: dict[str, str],
    message: str,
) -> None:
    with pytest.raises(TypeError) as caught:
        declare(uses, params, **inputs)
    assert str(caught.value).startswith(message)
    assert uses not in registry


def test_parameters_are_strict_and_frozen() -> None:
    params = orchard.Plant(rows=2)
    with pytest.raises(ValidationError, match="frozen"):
        params.rows = 3
    with pytest.raises(ValidationError, match="Extra inputs"):
        orchard.Plant(rows=2, rowz=3)  # type: ignore[call-arg]


def test_a_stage_that_says_nothing_has_nothing_to_say() -> None:
    params = Params()
    assert params.externals() == {}
    assert params.estimate({}) == {}
    assert list(params.check({})) == []
    assert (params.workers.num, params.workers.cpus, params.workers.gpus) == (1, 1.0, 0.0)
    assert (params.retries.worker, params.retries.error) == (2, 0)


def test_execution_fields_and_sections_are_found() -> None:
    assert repr(EXECUTION) == "EXECUTION"
    assert execution_fields(orchard.Plant) == {"workers", "retries", "tools"}
    assert execution_fields(orchard.Soil) == {"spade"}
    light = orchard.Plant.model_fields["light"].annotation
    assert list(nested_sections(light)) == [orchard.Sun, orchard.Shade]
    assert list(nested_sections(dict[str, list[orchard.Soil] | None])) == [orchard.Soil]
    assert list(nested_sections(int)) == []
    assert issubclass(Section, BaseModel)


# --- finding -----------------------------------------------------------------------------------


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
    monkeypatch.setattr("pipeline.stage_registry.stage_packages", lambda: ("stages", "cleared"))
    assert "clean" in [stage.uses for stage in all_stages()]


# --- calling -----------------------------------------------------------------------------------


def test_inputs_give_folders_by_the_name_of_the_edge() -> None:
    a, b = Made(Path("a")), Made(Path("b"))
    inputs = Inputs({"one": a, "list": (a, b)})  # type: ignore[arg-type]
    assert (list(inputs), len(inputs), inputs["one"]) == (["one", "list"], 2, a)
    assert inputs.path("one") == Path("a")
    assert inputs.paths("list") == [Path("a"), Path("b")]
    assert inputs.paths("one") == [Path("a")]
    assert inputs.paths("none") == []
    assert inputs.get_path("one") == Path("a")
    assert inputs.get_path("none") is None


def test_secrets_are_read_where_the_stage_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHARD_KEY", "apple")
    monkeypatch.delenv("ORCHARD_NONE", raising=False)
    assert resolve_secrets("no secret") == "no secret"
    assert resolve_secrets("https://${env:ORCHARD_KEY}@host/${x}") == "https://apple@host/${x}"
    with pytest.raises(InputError) as caught:
        resolve_secrets("${env:ORCHARD_NONE}")
    assert caught.value.message == "the secret ORCHARD_NONE is not set"
