"""Lines of several owners in one drawing."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from launch.report import curve_charts, svg
from launch.report.curve_charts import (
    curve_class,
    draw_curves,
    interpolate,
    smooth,
    smoothed_value_at,
)

SVG = "{http://www.w3.org/2000/svg}"
FALL = [(float(x), 10 * math.exp(-x / 3) + 2 - x / 1000) for x in range(1, 201)]


def polylines(drawing: str) -> list[list[tuple[float, float]]]:
    found = ElementTree.fromstring(svg.standalone(drawing)).iter(f"{SVG}polyline")
    return [
        [tuple(map(float, place.split(","))) for place in line.get("points", "").split()]  # type: ignore[misc]
        for line in found
    ]


def titles(drawing: str) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(svg.standalone(drawing)).iter()
            if e.tag == f"{SVG}title"]  # fmt: skip


def test_linear_axes_cut_off_the_initial_decrease() -> None:
    (line,) = polylines(draw_curves({"a": FALL}, "tokens"))
    heights = [y for _, y in line]
    assert len(line) < len(FALL)
    assert max(heights) - min(heights) > 0.6 * (svg.HEIGHT - svg.TOP - svg.BOTTOM)
    assert all(svg.TOP - 1 <= y <= svg.HEIGHT - svg.BOTTOM + 1 for y in heights)


def test_logarithmic_axes() -> None:
    points = [(10.0**k, 5.0 / 2**k) for k in range(4)]
    (line,) = polylines(draw_curves({"a": points}, "FLOPs", log=True))
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(line)]
    assert len(line) == 4
    assert all(step == pytest.approx(steps[0], abs=0.2) for step in steps)


def test_logarithmic_axis_with_zero_is_linear() -> None:
    assert len(polylines(draw_curves({"a": [(0.0, 2.0), (5.0, 1.0)]}, "FLOPs", log=True))[0]) == 2


def test_curves_have_distinct_styles() -> None:
    styles = {curve_class("s", index) for index in range(3 * svg.NUM_COLOURS)}
    assert len(styles) == 3 * svg.NUM_COLOURS
    many = {str(n): [(0.0, n), (1.0, n + 1.0)] for n in range(8)}
    drawing = draw_curves(many, "tokens")
    assert len(polylines(drawing)) == 8
    assert 'class="ln s1 d1"' in drawing


def test_empty_curve_keeps_its_colour() -> None:
    drawing = draw_curves({"a": [], "b": [(0.0, 1.0), (1.0, 2.0)]}, "tokens")
    assert 'class="ln s1 d0"' in drawing
    assert draw_curves({"a": []}, "tokens") == ""


def test_noise_is_drawn_for_few_curves_only() -> None:
    noise = random.Random(0)
    noisy = [(float(x), noise.random()) for x in range(200)]
    assert len(polylines(draw_curves(dict.fromkeys("abc", noisy), "tokens"))) == 6
    assert len(polylines(draw_curves(dict.fromkeys("abcd", noisy), "tokens"))) == 4


def test_tooltips_have_the_values_of_all_curves() -> None:
    tooltips = titles(
        draw_curves({"a": [(0.0, 1.0), (10.0, 3.0)], "b": [(0.0, 5.0), (4.0, 5.0)]}, "tokens")
    )
    assert tooltips[0].splitlines()[1:] == ["a 1.011", "b 5"]
    assert tooltips[-1].splitlines()[1:] == ["a 2.989"]
    assert tooltips[0].endswith("b 5") and tooltips[0].splitlines()[0].endswith(" tokens")


def test_interpolate() -> None:
    line = [(1.0, 4.0), (3.0, 8.0)]
    assert [interpolate(line, x) for x in (0.5, 1, 2, 3, 3.1)] == [None, 4, 6, 8, None]


def test_smoothed_value_at() -> None:
    line = [(float(x), 2.0) for x in range(1, 100)] + [(100.0, 8.0)]
    assert smoothed_value_at(line, 100.0) == pytest.approx((5 * 2 + 8) / 6)
    assert smoothed_value_at(line, 101.0) is None
    assert smoothed_value_at([(1.0, 4.0), (3.0, 8.0)], 2.0) == 6


def test_smooth_follows_steep_parts_and_the_end() -> None:
    noise = random.Random(1)
    line = [(x, y + noise.gauss(0, 0.05)) for x, y in FALL]
    assert curve_charts.is_noisy(line)
    smoothed = smooth(line)
    assert all(abs(y - true) < 0.1 for (_, y), (_, true) in zip(smoothed, FALL, strict=True))
    assert abs(smoothed[-1][1] - FALL[-1][1]) < 0.03
    assert smooth(FALL) == FALL


def test_hostile_names_stay_text() -> None:
    bad = '</title><script>x()</script>"\u202e&amp;'
    drawing = draw_curves({bad: [(0.0, 1.0), (1.0, 2.0)]}, bad)
    assert "<script" not in drawing and "\u202e" not in drawing
    polylines(drawing)
