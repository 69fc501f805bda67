"""The tables of a plan."""

from __future__ import annotations

from typing import Any

from pytest import CaptureFixture

from launch.ui.plan_table import estimate_cells, print_estimates
from pipeline.execution.plan import Plan, PlannedStage

MEMORY: dict[str, Any] = {
    "name": "memory per device",
    "value": 94 << 20,
    "unit": "bytes",
    "parts": {"weights": 5 << 20, "gradients": 5 << 20, "optimizer": 8 << 20, "buffers": 76 << 20},
    "note": "",
}


def test_breakdowns_wrap_between_parts() -> None:
    name, value, parts = estimate_cells(MEMORY)
    assert (name, value) == ("  memory per device", "94.0 MiB")
    assert parts.plain.splitlines() == [
        "weights 5.0 MiB, gradients 5.0 MiB,",
        "optimizer 8.0 MiB, buffers 76.0 MiB",
    ]


def test_estimates_of_a_piped_plan_fit_80_columns(capsys: CaptureFixture[str]) -> None:
    facts: dict[str, Any] = {"reason": "", "fingerprint": "", "payload": {}, "inputs": {}}
    stage = PlannedStage(
        name="gpt",
        uses="pretrain",
        kind="Model",
        action="run",
        **facts,
        needs=[],
        estimate={},
        warnings=[],
        source_hash="",
        estimate_rows=[{**MEMORY, "note": "measured once per device and step, " * 4}],
    )
    print_estimates(Plan("test", [stage]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["stage", "value", "breakdown"]
    assert lines[2].split() == ["gpt"]
    assert max(map(len, lines)) <= 80
