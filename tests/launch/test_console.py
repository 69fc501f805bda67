from __future__ import annotations

import math

import pytest

from launch import console
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (math.inf, ""),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1m 00s"),
        (185, "3m 05s"),
        (3600, "1h 00m"),
        (7800, "2h 10m"),
        (3 * 86400 + 4 * 3600, "3d 04h"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert console.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, ""),
        (0, "0"),
        (12.0, "12"),
        (999, "999"),
        (0.1234, "0.123"),
        (1000, "1 k"),
        (4190, "4.19 k"),
        (999_499, "999 k"),
        (999_999, "1 M"),
        (-1_234_567, "-1.23 M"),
        (3.4e12, "3.4 T"),
        (2e18, "2e+03 P"),
        (math.nan, "nan"),
    ],
)
def test_counts(number: float | None, text: str) -> None:
    assert console.count(number) == text


def test_figures_are_cut_with_a_count_of_the_rest() -> None:
    values = {"loss": 2.34567, "steps": 600.0, "a": 1.0, "b": 2.0}
    assert console.figures(values, 2) == "loss 2.346  steps 600  +2"


def test_what_is_piped_has_no_colours_and_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 150
    console.show(console.rows(console.table("a", "b"), [(long, "[red]y[/red]")]))
    shown = capsys.readouterr().out
    assert long in shown
    assert "[red]y[/red]" in shown
    assert "\x1b" not in shown


def test_a_complaint_says_what_where_and_what_next(capsys: pytest.CaptureFixture[str]) -> None:
    console.complain(
        UserError("it is \x1b[31mred", where="a.yaml:3", remedy="headwater plan a.yaml")
    )
    shown = capsys.readouterr().err
    assert shown == "error: a.yaml:3: it is \\x1b[31mred\nnext: headwater plan a.yaml\n"
