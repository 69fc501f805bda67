"""SVG primitives."""

from __future__ import annotations

from launch.report import svg


def test_ticks_are_round_and_enclose() -> None:
    assert svg.ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert svg.ticks(2.61, 8.2)[0] <= 2.61 and svg.ticks(2.61, 8.2)[-1] >= 8.2
    assert svg.ticks(3, 3)[0] < 3 < svg.ticks(3, 3)[-1]
    assert svg.ticks(0, 0)[0] < 0 < svg.ticks(0, 0)[-1]


def test_shorten() -> None:
    assert svg.shorten("abcdef", 6) == "abcdef"
    assert svg.shorten("abcdefg", 6) == "abcde…"
