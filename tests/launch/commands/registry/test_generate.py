"""Targets that `generate` refuses."""

from __future__ import annotations

import pytest
from command_calls import Call

from pipeline.execution.run import Run


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch", "no model 'nosuch'"),
        ("nosuch@champion", "no model 'nosuch' is registered"),
        ("latest:clean", "latest:clean holds Documents, not a model"),
        ("latest:gtp", "did you mean 'gpt'?"),
        ("latest", "no model 'latest'"),
    ],
)
def test_generate_needs_a_model(run: Run, call: Call, name: str, message: str) -> None:
    assert message in call("generate", name, "hello", code=2).stderr


def test_generate_needs_tokens(run: Run, call: Call) -> None:
    assert (
        "must be at least 1" in call("generate", "latest:gpt", "x", "--tokens", "0", code=2).stderr
    )
