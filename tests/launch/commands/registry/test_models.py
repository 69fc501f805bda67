"""`models` and `rollback` of an empty registry."""

from __future__ import annotations

from command_calls import Call, parse_json

from pipeline.execution.run import Run


def test_models_of_an_empty_registry(run: Run, call: Call) -> None:
    assert "no models are registered" in call("models").stdout
    assert parse_json(call("models", "--json")) == []
    assert "no model 'm' is registered" in call("models", "m", "--history", code=2).stderr
    assert "no model 'm'" in call("rollback", "--model", "m", code=2).stderr
