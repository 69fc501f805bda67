from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.report import diagram, svg
from launch.report.diagram import NODE_WIDTH, StageBox


def boxes(names: list[str]) -> list[StageBox]:
    return [StageBox(name, "Model · 3 s", "finished", f"{name} <done>") for name in names]


def corners(drawing: str) -> dict[str, tuple[float, float]]:
    """Left top corner of each stage's box."""
    root = ElementTree.fromstring(svg.standalone(drawing))
    found = {}
    for link in root.iter("{http://www.w3.org/2000/svg}a"):
        rect = link.find("{http://www.w3.org/2000/svg}rect")
        assert rect is not None
        found[link.get("href", "")[1:]] = (float(rect.get("x", 0)), float(rect.get("y", 0)))
    return found


def test_stages_flow_downwards_and_do_not_overlap() -> None:
    names = ["a", "b", "c", "d"]
    drawing = diagram.draw_graph(boxes(names), {"b": ["a"], "c": ["a"], "d": ["b", "a", "gone"]})
    at = corners(drawing)
    assert at["a"][1] < at["b"][1] == at["c"][1] < at["d"][1]
    assert abs(at["b"][0] - at["c"][0]) >= NODE_WIDTH
    assert drawing.count('class="edge"') == 4
    assert "a → d" in drawing and "gone" not in drawing


def test_neighbours_are_sorted_so_that_edges_do_not_cross() -> None:
    needs = {"x": ["c"], "y": ["b"], "z": ["a"]}
    at = corners(diagram.draw_graph(boxes(["a", "b", "c", "x", "y", "z"]), needs))
    upper = sorted("abc", key=lambda name: at[name][0])
    lower = sorted("xyz", key=lambda name: at[name][0])
    assert [needs[name][0] for name in lower] == upper


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=30))
def test_any_graph_can_be_drawn_without_overlap(pairs: list[tuple[int, int]]) -> None:
    names = [f"s{i}" for i in range(12)]
    needs = {
        n: sorted({names[a] for a, b in pairs if b == i and a < b}) for i, n in enumerate(names)
    }
    at = corners(diagram.draw_graph(boxes(names), needs))
    assert set(at) == set(names)
    rows: dict[float, list[float]] = {}
    for x, y in at.values():
        assert x >= -0.1
        rows.setdefault(y, []).append(x)
    for row in map(sorted, rows.values()):
        assert all(right - left >= NODE_WIDTH - 0.11 for left, right in pairwise(row))


def test_no_stages_no_graph() -> None:
    assert diagram.draw_graph([], {}) == ""
    assert diagram.draw_timeline({}) == diagram.draw_timeline({"a": []}) == ""


def test_timeline_has_one_bar_per_attempt() -> None:
    rows = {
        "a": [(100.0, 130.0, "failed"), (140.0, 200.0, "finished")],
        "b": [(200.0, 200.0, "cached")],
        "c": [],
    }
    drawing = diagram.draw_timeline(rows)
    ElementTree.fromstring(svg.standalone(drawing))
    spans = re.findall(r'width="([\d.]+)" height="[\d.]+" rx="2" class="span (\w+)"', drawing)
    assert [state for _, state in spans] == ["failed", "finished", "cached"]
    assert float(spans[1][0]) == pytest.approx(2 * float(spans[0][0]), abs=0.2)
    assert "a: 1m 00s, finished" in drawing and "b: cached, cached" in drawing


@pytest.mark.parametrize("seconds", [0.0, 0.3, 9, 75, 4000, 90_000, 5e6])
def test_timeline_has_few_ticks(seconds: float) -> None:
    drawing = diagram.draw_timeline({"a": [(0.0, seconds, "finished")]})
    assert 1 <= drawing.count('class="rule"') <= 9
