"""Submission of runs as jobs; that to a real head is tested in tests/integration."""

from __future__ import annotations

import pytest
from fake_ray_head import FakeRayHead, make_submitted_run

from launch.cluster.code_package import CodePackage
from launch.cluster.job_submission import submit_job
from pipeline.errors import Failure, Interrupted, UserError
from pipeline.storage.store import Store


def test_a_cancelled_run_is_not_submitted(store: Store, head: FakeRayHead) -> None:
    run, far = make_submitted_run(store, head.address)
    run.append("run.resubmitted")
    run.cancel_file.write_text("cancel\n")
    with pytest.raises(Interrupted, match="cancelled before submission"):
        submit_job(run, far, None)
    assert run.status().state == "cancelled"
    with pytest.raises(Failure):  # a later call submits it: this head takes no jobs
        submit_job(run, far, None)
    assert run.status().state == "pending"
    assert not run.cancel_file.exists()


def test_an_active_job_keeps_its_code(store: Store, head: FakeRayHead) -> None:
    run, far = make_submitted_run(store, head.address)
    head.answers[f"/api/jobs/{run.id}"] = {"submission_id": run.id, "status": "PENDING"}
    run.append("run.resubmitted")
    submit_job(run, far, None)
    with pytest.raises(UserError, match="is active with other code") as caught:
        submit_job(run, far, CodePackage("_ray_pkg_b.zip", b"", 1, ""))
    assert caught.value.remedy.startswith(f"headwater cancel {run.id}")
