"""How a stage is declared, found and called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orchard
import pytest
from pydantic import BaseModel, ValidationError

from pipeline.context import Context
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
        ("s", orchard.Plant, {"rows": "Text"}, "stage s: 'rows' is both a parameter and an input"),
        ("s", Uses, {}, "stage s: 'uses' is both a parameter and an input or keyword"),
        ("s", Hidden, {}, "stage s: Nested.where: declare a path as `str`"),
        ("s", Halfway, {}, "stage s: Halfway.size: EXECUTION marks a whole field"),
        (
            "s",
            Params,
            {"trees": "Treees"},
            "stage s: unknown kind of artifact 'Treees' (did you mean 'Trees'?)",
        ),
    ],
)
def test_invalid_declarations_are_rejected_at_import(
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


def test_the_defaults_of_params() -> None:
    params = Params()
    assert params.externals() == {}
    assert params.estimate({}) == {}
    assert list(params.check({})) == []
    assert (params.workers.num, params.workers.cpus, params.workers.gpus) == (1, 1.0, 0.0)
    assert (params.retries.worker, params.retries.error) == (2, 0)


def test_execution_fields_and_sections_are_found() -> None:
    assert execution_fields(orchard.Plant) == {"workers", "retries", "tools"}
    assert execution_fields(orchard.Soil) == {"spade"}
    light = orchard.Plant.model_fields["light"].annotation
    assert list(nested_sections(light)) == [orchard.Sun, orchard.Shade]
    assert list(nested_sections(dict[str, list[orchard.Soil] | None])) == [orchard.Soil]
    assert list(nested_sections(int)) == []
    assert issubclass(Section, BaseModel)


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
