"""Promotions that are refused."""

from __future__ import annotations

import pytest
from command_calls import Call

from pipeline.execution.run import Run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["latest:clean", "--model", "m"], "holds Documents, not a model"),
        (["latest:gtp", "--model", "m"], "did you mean 'gpt'?"),
        (["latest:gpt", "--model", "m", "--alias", "latest"], "reserved"),
        (["latest:gpt", "--model", "M!"], "is not a valid name for a model"),
        (["latest:gpt", "--model", "m", "--require", "better"], "is not a gate"),
        (["latest:gpt", "--model", "m", "--require", "gpt.los<3"], "did you mean 'gpt.loss'?"),
        (["latest:gpt"], "promotes no model"),
    ],
)
def test_invalid_promotions(run: Run, call: Call, words: list[str], message: str) -> None:
    assert message in call("promote", *words, code=2).stderr


def test_corrupt_model_is_not_promoted(call: Call, run: Run) -> None:
    stage = next(entry for entry in run.status().stages if entry.name == "gpt")
    found = run.store.find(stage.uses, stage.fingerprint)
    assert found is not None
    (found.path / "manifest.json").write_text("{")
    error = call("promote", f"{run.id}:gpt", "--model", "m", code=2).stderr
    assert f"the artifact of gpt of run {run.id} is corrupt or gone" in error
    assert f"headwater resume {run.id}" in error
