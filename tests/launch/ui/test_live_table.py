from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from launch.ui.live_table import RateEstimator, StatusLines, StatusTable, format_progress
from pipeline.status import RunStatus, StageStatus


def progress(done: float, at: float, **more: Any) -> dict[str, Any]:
    return {"done": done, "total": 600, "unit": "steps", "time": at, **more}


def status(*stages: StageStatus, state: str = "running") -> RunStatus:
    return RunStatus("20261121-0203-calm-heron", "quickstart", state, "store", list(stages))


WHOLE = status(
    StageStatus("clean", "clean", "cached", seconds=12.1, metrics={"documents": 14210.0}),
    StageStatus(
        "gpt",
        "pretrain",
        "running",
        progress=progress(312, 10.0, loss=5.2134, tokens_per_second=4100.0),
    ),
    StageStatus(
        "sft-augmented", "sft", "waiting", reason="20261121-0201-bold-duck is producing it"
    ),
    StageStatus("reward", "reward", "failed", reason="seven is not a number"),
    StageStatus("evaluate", "evaluate"),
)


def drawn(width: int, shown: RunStatus = WHOLE) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=width, no_color=True).print(StatusTable().draw(shown, width))
    return [line.rstrip() for line in text.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_table_fits_and_is_aligned(width: int) -> None:
    lines = drawn(width)
    assert len(lines) == 1 + len(WHOLE.stages)
    assert max(map(len, lines)) <= width
    assert lines[0] == "quickstart  20261121-0203-calm-heron  1/5 stages  ● running"
    assert [line[4:17] for line in lines[1:]] == [f"{s.name:<13}" for s in WHOLE.stages]
    assert {line[17:19] for line in lines[1:]} == {"  "}
    assert {line[19] for line in lines[1:]} & {" "} == set()
    assert "312/600 steps" in lines[2]
    assert "loss 5.213" in lines[2]
    assert lines[2].endswith("4,100 tok/s")


def test_narrow_table_keeps_the_names() -> None:
    assert any(line.lstrip().startswith("‖ gpt") or "● gpt" in line for line in drawn(40))
    assert max(map(len, drawn(40))) <= 40


def test_rate_needs_two_observations() -> None:
    rates = RateEstimator()
    assert rates.remaining("gpt", progress(300, 0.0)) is None
    assert rates.remaining("gpt", progress(300, 1.0)) is None
    assert rates.remaining("gpt", progress(400, 11.0)) == pytest.approx(200 / (100 / 11))
    assert rates.rate("sft", progress(1, 11.0)) is None


def test_rate_of_a_resumed_stage_starts_anew() -> None:
    rates = RateEstimator()
    rates.rate("gpt", progress(0, 0.0))
    rates.rate("gpt", progress(500, 5.0))
    assert rates.rate("gpt", progress(200, 6.0)) is None
    assert rates.rate("gpt", progress(210, 7.0)) == pytest.approx(10.0)


def test_rate_is_of_the_last_minute() -> None:
    rates = RateEstimator()
    for second in range(200):
        rates.rate("gpt", progress(second if second < 100 else 100 + 5 * (second - 100), second))
    assert rates.rate("gpt", progress(600, 200.0)) == pytest.approx(5.0, rel=0.02)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, ""),
        ({"done": 4, "total": 4000, "unit": "steps"}, "4/4000 steps"),
        ({"done": 1_234_567, "total": 3e6, "unit": "tokens"}, "1.23 M/3 M tokens"),
        ({"done": 7, "total": None, "unit": ""}, "7"),
    ],
)
def test_format_progress(values: dict[str, Any], text: str) -> None:
    assert format_progress(values) == text


def test_lines_show_each_change_once() -> None:
    plain = StatusLines()
    first = list(plain.lines(WHOLE, now=0.0))
    assert [line.split()[:2] for line in first] == [
        ["clean", "cached"],
        ["gpt", "running"],
        ["sft-augmented", "waiting"],
        ["reward", "failed"],
    ]
    assert "seven is not a number" in first[-1]
    assert list(plain.lines(WHOLE, now=1.0)) == []
    again = list(plain.lines(WHOLE, now=6.0))
    assert len(again) == 1
    assert "312/600 steps" in again[0]
    done = StageStatus("gpt", "pretrain", "finished", seconds=61.0, metrics={"loss": 3.21})
    assert "loss 3.21" in next(plain.lines(status(done), now=6.1))
