"""`show` of runs and artifacts."""

from __future__ import annotations

import re

import pytest
import sample_run
from command_calls import Call, parse_json

from pipeline.execution.run import Run


def test_show_a_run(run: Run, call: Call) -> None:
    data = parse_json(call("show", run.id, "--json"))
    gpt = next(stage for stage in data["stages"] if stage["name"] == "gpt")
    assert gpt["made_by"] == {"id": run.id, "stage": "gpt", "attempt": 1}
    assert gpt["inputs"]["tokens"][0]["fingerprint"] == sample_run.print_of("tokens")
    assert "RewardModel" in call("show").stdout


@pytest.mark.parametrize("name", ["print", "uses", "stage"])
def test_show_an_artifact(run: Run, call: Call, name: str) -> None:
    fp = sample_run.print_of("gpt")
    target = {"print": fp, "uses": f"pretrain/{fp}", "stage": "latest:gpt"}[name]
    data = parse_json(call("show", target, "--json"))
    assert data["fingerprint"] == fp
    readers = {(reader["uses"], reader["fingerprint"]) for reader in data["read_by"]}
    assert readers == {
        ("sft", sample_run.print_of("sft")),
        ("evaluate", sample_run.print_of("evaluate")),
    }
    shown = call("show", target).stdout
    assert f"made by     gpt of {run.id}" in shown
    assert "external source python:docs" in shown
    assert "see above" in shown


def test_show_prints_table_panels(run: Run, call: Call) -> None:
    shown = call("show", "latest:clean").stdout
    tables = shown[shown.index("What the rules took away") : shown.index("made from")]
    assert re.search(r"read +25,240", tables) and re.search(r"too short +-4,821", tables)
    assert re.search(r"stdlib +9,120 +8.12 M", tables)
    assert "Length of a document" not in shown  # a histogram is for the report


def test_unknown_targets(run: Run, call: Call) -> None:
    assert "no artifact begins with" in call("show", "gpt/0123456789abcdef", code=2).stderr
    assert "no run" in call("show", "0123456789abcdef", code=2).stderr
    assert "did you mean 'gpt'?" in call("show", "latest:gtp", code=2).stderr
