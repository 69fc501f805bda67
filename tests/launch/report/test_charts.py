from __future__ import annotations

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from launch.report import charts, curve_charts, svg
from pipeline import panels

BAD = '</title><script>x()</script>"\x1b[31m\u202e&amp;'


def parsed(drawing: str) -> ElementTree.Element:
    """Parse a drawing, which is well-formed XML."""
    return ElementTree.fromstring(svg.standalone(drawing))


def titles(drawing: str) -> list[str]:
    return [
        element.text or "" for element in parsed(drawing).iter() if element.tag.endswith("title")
    ]


def widths(drawing: str) -> list[float]:
    bars = [e for e in parsed(drawing).iter() if "bar" in e.get("class", "")]
    return [float(bar.get("width", 0)) for bar in bars]


SERIES = [{"step": i, "time": i, "loss": 5 / (i + 1), "lr": 1e-3, "name": None} for i in range(30)]


def test_waterfall_bars() -> None:
    steps = [("read", 100), ("short", -30), ("made up", 10), ("kept", 80)]
    drawing = charts.draw(panels.waterfall("x", "documents", steps))
    read, short, more, kept = widths(drawing)
    assert short == pytest.approx(0.3 * read, abs=0.2)
    assert more == pytest.approx(0.1 * read, abs=0.2)
    assert kept == pytest.approx(0.8 * read, abs=0.2)
    assert "short: -30 documents (30.0%)" in titles(drawing)


def test_long_labels_keep_their_end() -> None:
    rule = "gopher_repetition:datatrove.duplicate_10_gram_characters"
    drawing = charts.draw(
        panels.waterfall("x", "documents", [("read", 9), (rule, -4), ("kept", 5)])
    )
    assert ".duplicate_10_gram_characters<" in drawing and f">{rule}<" not in drawing
    assert any(title.startswith(rule) for title in titles(drawing)), (
        "the tooltip has the whole name"
    )


def test_curve_panel_has_lines_and_tooltips() -> None:
    drawing = charts.draw(panels.curve("x", ["loss", "lr", "missing"], unit="nats"), SERIES)
    assert drawing.count("<polyline") == 2
    assert "missing" not in drawing
    assert any("step 4" in title and "loss 1" in title for title in titles(drawing))


def test_single_point_is_a_dot() -> None:
    assert "<circle" in charts.draw(panels.curve("x", ["loss"]), SERIES[:1])


def test_only_noisy_lines_are_smoothed() -> None:
    noisy = [{"step": i, "loss": 1 + (-1) ** i * 0.1} for i in range(200)]
    straight = [{"step": i, "loss": i} for i in range(200)]
    assert charts.draw(panels.curve("x", ["loss"]), noisy).count("<polyline") == 2
    assert charts.draw(panels.curve("x", ["loss"]), straight).count("<polyline") == 1


@pytest.mark.parametrize("values", [(0.5, 600.0), (1.0, 1.0), (3e-5, 4e-5), (1.0, 1e6)])
def test_logarithmic_axis_encloses_its_line(values: tuple[float, float]) -> None:
    series = [{"step": i, "y": y} for i, y in enumerate(values)]
    drawing = charts.draw(panels.curve("x", ["y"], log_y=True), series)
    for line in parsed(drawing).iter("{http://www.w3.org/2000/svg}polyline"):
        heights = [float(p.split(",")[1]) for p in line.get("points", "").split()]
        assert all(svg.TOP - 1 <= y <= svg.HEIGHT - svg.BOTTOM + 1 for y in heights)


def test_logarithmic_axis_with_zero_is_linear() -> None:
    series = [{"step": 0, "y": 0.0}, {"step": 1, "y": 5.0}]
    assert "<polyline" in charts.draw(panels.curve("x", ["y"], log_y=True), series)


def test_last_tick_label_is_not_cut_off() -> None:
    drawing = charts.draw(panels.curve("x", ["y"]), [{"step": 0, "y": 1}, {"step": 300000, "y": 2}])
    labels = [e for e in parsed(drawing).iter() if e.tag.endswith("text")]
    (last,) = [e for e in labels if e.text == "300 k"]
    assert last.get("class") == "end" and float(last.get("x", 0)) <= svg.WIDTH


def test_decimation_keeps_every_spike() -> None:
    line = [(float(i), 0.0) for i in range(10_000)]
    line[5003] = (5003.0, 9.0)
    line[7001] = (7001.0, -9.0)
    kept = curve_charts.decimate(line)
    assert len(kept) <= 2 * curve_charts.MAX_BUCKETS
    assert (5003.0, 9.0) in kept and (7001.0, -9.0) in kept
    assert kept == sorted(kept)


def test_repeated_step_counts_once() -> None:
    rows = [{"step": 1, "y": 5}, {"step": 0, "y": 4}, {"step": 1, "y": 6}, {"step": 2, "y": None}]
    assert curve_charts.points_of(rows, "y") == [(0, 4.0), (1, 6.0)]


def test_bars_grow_from_zero_both_ways() -> None:
    values = {"a": 4, "b": -2.0, "c": math.nan, "d": "text"}
    drawing = charts.draw({"type": "bars", "title": "x", "values": values, "unit": "nats"})
    a, b, c = widths(drawing)
    assert a == pytest.approx(2 * b, abs=0.2)
    assert c == 0
    assert "−2 nats" in drawing and "– nats" in drawing


def test_geometric_bins_have_equal_width() -> None:
    drawn = charts.draw(panels.histogram("x", [1.0, 10.0, 100.0, 1000.0], [3, 6, 2]))
    widths = re.findall(r'<rect x="[\d.]+" y="[\d.]+" width="([\d.]+)"', drawn)
    assert len(widths) == 3
    assert len(set(widths)) == 1


def test_histogram_has_one_bar_per_bin_and_thresholds() -> None:
    panel = panels.histogram("x", [0.0, 0.1, 0.5], [3, 6], thresholds=[0.2])
    drawing = charts.draw(panel)
    assert "0.1 to 0.5: 6" in titles(drawing)
    assert "threshold 0.2" in drawing
    assert "threshold" not in charts.draw({**panel, "thresholds": [7]})
    assert "threshold" not in charts.draw({**panel, "thresholds": []})
    assert charts.draw(panels.histogram("x", [2, 2], [3]))


@pytest.mark.parametrize(
    "panel",
    [
        panels.waterfall("x", "u", []),
        panels.curve("x", ["loss"]),
        panels.bars("x", {}),
        panels.histogram("x", [], []),
        panels.histogram("x", [1, 2, 3], [1]),
        panels.table("x", ["a"], []),
        {"type": "hologram", "title": "x"},
    ],
)
def test_empty_panels_are_not_drawn(panel: panels.Panel) -> None:
    assert charts.draw(panel) == ""


@pytest.mark.parametrize(
    "panel",
    [
        panels.waterfall("x", BAD, [(BAD, 3), (BAD, 3)]),
        panels.curve("x", [BAD], unit=BAD),
        panels.bars("x", {BAD: 1.0}, unit=BAD),
    ],
)
def test_hostile_text_stays_text(panel: panels.Panel) -> None:
    drawing = charts.draw(panel, [{"step": 1, BAD: 2.0}])
    assert drawing
    parsed(drawing)
    assert "<script" not in drawing and "\x1b" not in drawing and "\u202e" not in drawing


def test_table_of_tables_and_samples() -> None:
    assert charts.table_of(panels.table("x", ["a"], [[1]])) == {"columns": ["a"], "data": [[1]]}
    items = [{"before": "a"}, {"after": "b"}]
    expected = {"columns": ["before", "after"], "data": [["a", ""], ["", "b"]]}
    assert charts.table_of(panels.samples("x", items)) == expected
    assert charts.table_of(panels.bars("x", {})) is None


def test_corrupt_panels_are_skipped(tmp_path: Path) -> None:
    assert charts.read_panels(tmp_path) == []
    (tmp_path / "panels.json").write_text("[{")
    assert charts.read_panels(tmp_path) == []
    good = panels.bars("x", {"a": 1})
    (tmp_path / "panels.json").write_text(json.dumps([good, 7, {}]))
    assert charts.read_panels(tmp_path) == [good]
