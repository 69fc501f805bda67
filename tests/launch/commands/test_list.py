"""`list`."""

from __future__ import annotations

from command_calls import Call, parse_json

from pipeline.execution.run import Run


def test_list(run: Run, call: Call) -> None:
    data = parse_json(call("list", "--json"))
    assert [entry["run"] for entry in data] == [run.id]
    assert (data[0]["done"], data[0]["stages"], data[0]["state"]) == (10, 10, "finished")
    assert call("list").stdout.splitlines()[2].split()[:4] == [
        run.id,
        "quickstart",
        "✓",
        "finished",
    ]


def test_empty_store_suggests_run(call: Call) -> None:
    assert parse_json(call("list", "--json")) == []
    assert "next: headwater run CONFIG" in call("list").stderr
    assert "the store holds no runs" in call("status", code=2).stderr
