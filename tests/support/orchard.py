"""Stages with every sort of parameter, for the tests of specs and plans. None of them is run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from hypothesis import HealthCheck, settings
from pydantic import Field, field_validator

from pipeline.context import Context
from pipeline.errors import InputError, Problem
from pipeline.kind import Kind, register_kind
from pipeline.stage import EXECUTION, Inputs, Params, Section, stage

steady = settings(
    deadline=None,  # a busy machine is no failure
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)

for name in ("Trees", "Juice", "Yeast", "Text"):
    register_kind(Kind(name))
register_kind(Kind("BottleModel", promotable=True))


class Soil(Section):
    depth: Annotated[int, Field(ge=1, le=100)] = 10
    kind: Literal["clay", "sand"] = "clay"
    grit: Annotated[float, Field(gt=0, lt=1)] = 0.5
    spade: Annotated[str, EXECUTION] = "wooden"


class Sun(Section):
    family: Literal["sun"]
    hours: int = 6


class Shade(Section):
    family: Literal["shade"]
    trees: int = 2


class Plant(Params):
    seed: int = 3
    rows: int
    water: float = 1
    organic: bool = False
    label: str | None = None
    names: Annotated[tuple[str, ...], Field(min_length=1, max_length=3)] = ("apple",)
    pairs: Annotated[int, Field(multiple_of=2)] = 2
    code: Annotated[str, Field(pattern="^[A-Z]*$", min_length=2)] = "AB"
    short: Annotated[str, Field(max_length=4)] = ""
    soil: Soil = Soil()
    light: Annotated[Sun | Shade, Field(discriminator="family")] = Sun(family="sun")
    either: int | list[str] = 1
    beds: tuple[Soil, ...] = ()
    prices: dict[str, float] = Field(default_factory=dict)
    day: date | None = None
    source: str = ""
    tools: Annotated[int, EXECUTION] = 1

    @field_validator("rows")
    @classmethod
    def _lucky(cls, rows: int) -> int:
        if rows == 13:
            raise ValueError("13 rows bring bad luck")
        return rows

    def externals(self) -> dict[str, str]:
        if not self.source:
            return {}
        try:
            data = Path(self.source).read_bytes()
        except OSError:
            raise InputError(f"cannot read {self.source}", remedy="give a file") from None
        return {self.source: hashlib.sha256(data).hexdigest()}

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        if self.soil.depth * self.rows > 1000:
            yield Problem("soil.depth", "digs too much", "fewer rows")
        if "rotten" in self.names:
            yield Problem(f"names[{self.names.index('rotten')}]", "is rotten")

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        return {"seconds": float(self.rows)}


@stage("orchard.plant", output="Trees", version=1)
def plant(params: Plant, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Plant trees."""


class Press(Params):
    sweetness: float = 1.0

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        trees = upstream.get("trees")
        if isinstance(trees, Plant) and trees.rows < 2:
            yield Problem("trees", f"{trees.rows} row of trees is too little to press")


@stage(
    "orchard.press",
    inputs={"trees": "Trees", "more": "Trees*?", "yeast": "Yeast|Trees?"},
    output="Juice",
    version=1,
)
def press(params: Press, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Press juice."""


class Taste(Params):
    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        trees = upstream.get("juices[0].trees")
        if isinstance(trees, Plant) and not trees.organic:
            yield Problem("juices[0]", "the trees of this juice are not organic")

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        return {"seconds": 0.5 * len(upstream)}


@stage("orchard.taste", inputs={"juices": "Juice*"}, output="Metrics", version=2)
def taste(params: Taste, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Taste juices."""


@stage(
    "orchard.bottle",
    inputs={"juice": "Juice"},
    output="BottleModel",
    version=1,
    metrics={"sweetness": "grams of sugar per litre", "left_over_*": "what was left over"},
)
def bottle(params: Params, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Bottle a juice: the registry takes what is called a model."""
