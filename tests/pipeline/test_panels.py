"""Panels are plain data: whatever a stage gives survives JSON unchanged."""

from __future__ import annotations

import json

import pytest

from pipeline import panels


@pytest.mark.parametrize(
    ("panel", "fields"),
    [
        (
            panels.waterfall("w", "documents", [("read", 3), ("short", -1), ("kept", 2)]),
            {"unit": "documents", "steps": [["read", 3], ["short", -1], ["kept", 2]]},
        ),
        (
            panels.curve("c", ("loss",), log_y=True),
            {"keys": ["loss"], "log_y": True, "unit": ""},
        ),
        (panels.bars("b", {"a": 1}, unit="s"), {"values": {"a": 1}, "unit": "s"}),
        (
            panels.histogram("h", (0, 1, 2), (5, 6), thresholds=(1,), group="g"),
            {"edges": [0, 1, 2], "counts": [5, 6], "thresholds": [1], "group": "g"},
        ),
        (panels.table("t", ("x",), [(1,), ("a",)]), {"columns": ["x"], "rows": [[1], ["a"]]}),
        (panels.samples("s", [{"before": "a"}]), {"items": [{"before": "a"}]}),
        (panels.browser("b", [{"text": "a"}]), {"items": [{"text": "a"}]}),
    ],
    ids=lambda value: value.get("type", "") if isinstance(value, dict) else "",
)
def test_a_panel_is_its_type_its_title_and_its_data(
    panel: panels.Panel, fields: dict[str, object]
) -> None:
    assert json.loads(json.dumps(panel)) == panel
    assert {key: panel[key] for key in panel if key not in ("type", "title")} == fields
    assert len(panel["title"]) == 1
