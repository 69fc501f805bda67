from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import pytest
from click.testing import CliRunner
from pydantic import Field

from launch.cli import cli
from launch.commands.stages import list_parameters, markdown_page
from pipeline.stage import EXECUTION, Params, Section
from pipeline.stage_registry import all_stages


class Model(Section):
    """A section."""

    layers: int = 4
    """How deep
    it is."""
    size: Literal["tiny", "small"] | None = None
    """One dial."""


class Wide(Params):
    """Parameters of a stage."""

    sources: tuple[str, ...]
    """Where from | to."""
    model: Model = Model()
    """The network."""
    lr: float = 3e-4
    """Step size."""
    longest: float = 10.0
    """A whole number."""
    block: Annotated[int, EXECUTION] = 8
    """Documents at once."""


def test_parameters_are_read_from_the_source() -> None:
    found = {p.name: p for p in list_parameters(Wide)}
    assert list(found)[:5] == ["sources", "model.layers", "model.size", "lr", "longest"]
    assert found["sources"].default == "required"
    assert found["sources"].type == "list of text"
    assert found["model.layers"].meaning == "How deep it is."
    assert found["model.size"].type == "tiny or small or none"
    assert (found["lr"].default, found["longest"].default) == ("3e-4", "10")
    assert (found["lr"].role, found["block"].role) == ("identity", "execution")
    assert found["workers.num"].role == "execution"
    assert found["workers.num"].meaning == "Number of processes (ranks) of the stage. Default: 1."


class Square(Section):
    """One shape."""

    shape: Literal["square"] = "square"
    """Shape."""
    size: int = 1
    """Length of a side."""


class Circle(Section):
    """Another."""

    shape: Literal["circle"] = "circle"
    """Shape."""
    radius: float = 2.0
    """Radius."""


class Drawing(Params):
    """A choice of sections."""

    drawing: Annotated[Square | Circle, Field(discriminator="shape")] = Square()
    """What is drawn."""


def test_sections_to_choose_from_are_listed_together() -> None:
    found = {p.name: p for p in list_parameters(Drawing)}
    assert list(found)[:3] == ["drawing.shape", "drawing.size", "drawing.radius"]
    assert found["drawing.shape"].type == "square or circle"
    assert found["drawing.shape"].default == '"square"'
    assert found["drawing.radius"].meaning == "Radius. Only for circle."


def test_every_parameter_of_every_stage_has_a_meaning() -> None:
    missing = [
        f"{stage.uses}: {p.name}"
        for stage in all_stages()
        for p in list_parameters(stage.params)
        if stage.run.__module__.startswith("stages.") and not p.meaning
    ]
    assert not missing


@pytest.mark.usefixtures("toys")
def test_the_command() -> None:
    done = CliRunner().invoke(cli, ["stages", "toy.count", "--json"])
    (toy,) = json.loads(done.stdout)
    assert toy["output"] == "Number"
    assert {p["name"]: p["role"] for p in toy["parameters"]}["hold"] == "execution"
    shown = CliRunner().invoke(cli, ["stages", "toy.add"]).stdout
    assert "Number list" in shown
    near = CliRunner().invoke(cli, ["stages", "toy.cuont"])
    assert near.exit_code == 2
    assert "did you mean 'toy.count'?" in near.stderr


def test_the_page_is_markdown(toys: Path) -> None:
    text = markdown_page([stage for stage in all_stages() if stage.uses.startswith("toy.")])
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    metrics = ["| `total` | sum of the numbers |"]
    assert [row for row in rows if row.replace("\\|", "").count("|") != 5] == metrics
    assert "| `hold` · | text |" in text
