"""`cancel` of runs without a driver."""

from __future__ import annotations

import pytest
import sample_run
from command_calls import Call
from fake_ray_head import make_submitted_run

from pipeline.storage.store import Store


def test_cancel_before_the_run_started(
    store: Store, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sample_run.make(store.root, names=())
    run.journal.path.write_text("".join(run.journal.path.read_text().splitlines(keepends=True)[:2]))
    monkeypatch.setattr("launch.commands.cancel.START_TIMEOUT", 0.1)
    assert "was cancelled before it started" in call("cancel").output
    assert run.status().state == "cancelled"
    assert "is already over: cancelled" in call("cancel").output


def test_cancel_while_the_head_does_not_answer(store: Store, call: Call) -> None:
    run, _ = make_submitted_run(store, "http://127.0.0.1:9")
    run.append("run.resubmitted")
    output = call("cancel", code=1).output
    assert "no Ray head answers" in output
    assert f"headwater cancel {run.id}" in output
    assert run.status().state == "pending"
    assert run.cancel_file.exists()  # its job stops at once
