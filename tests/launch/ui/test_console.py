from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from launch.ui import console
from pipeline.errors import UserError


def test_format_metrics_counts_the_rest() -> None:
    values = {"loss": 2.34567, "steps": 600.0, "a": 1.0, "b": 2.0}
    assert console.format_metrics(values, "Unknown", 2) == "loss 2.346  steps 600  +2"


def test_json_has_no_numbers_that_are_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"a": [math.nan, -math.inf, 1.5], "path": Path("x")})
    assert json.loads(capsys.readouterr().out) == {"a": [None, None, 1.5], "path": "x"}


def test_piped_tables_are_plain_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 150
    table = console.make_table("a", "b")
    table.add_row(long, "[red]y[/red]")
    console.print_table(table)
    shown = capsys.readouterr().out
    assert long in shown
    assert "[red]y[/red]" in shown
    assert "\x1b" not in shown


def test_print_error(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_error(
        UserError("it is \x1b[31mred", where="a.yaml:3", remedy="headwater plan a.yaml")
    )
    shown = capsys.readouterr().err
    assert shown == "error: a.yaml:3: it is \\x1b[31mred\nnext: headwater plan a.yaml\n"
