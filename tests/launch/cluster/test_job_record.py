"""`job.json` of submitted runs."""

from __future__ import annotations

import pytest
import sample_run
from fake_ray_head import FakeRayHead, make_submitted_run

from launch.cluster.job_record import (
    JobRecord,
    copy_job_record,
    is_job_gone,
    latest_job,
    submitted_cluster,
)
from pipeline.execution.run import Run
from pipeline.storage.store import Store


def test_a_local_run_has_no_record(store: Store) -> None:
    run = sample_run.make(store.root, names=("clean",))
    assert JobRecord.read(run) is None
    assert submitted_cluster(run) is None


def test_copies_have_no_jobs(store: Store) -> None:
    run, far = make_submitted_run(store, "http://127.0.0.1:9")
    copy = Run(store, "20261121-0204-deft-duck")
    copy.folder.mkdir(parents=True)
    copy_job_record(run, copy)
    assert JobRecord.read(copy) == JobRecord(str(far.path), "")
    assert latest_job(copy, far) is None


@pytest.mark.parametrize(
    ("status", "now", "gone"),
    [("RUNNING", False, False), ("RUNNING", True, True), ("STOPPED", False, True)],
)
def test_is_job_gone(store: Store, head: FakeRayHead, status: str, now: bool, gone: bool) -> None:
    run, far = make_submitted_run(store, head.address)
    assert is_job_gone(run, str(far.path), now) is None
    job = {"submission_id": run.id, "status": status}
    head.answers |= {f"/api/jobs/{run.id}": job, f"/api/jobs/{run.id}/stop": {}}
    assert is_job_gone(run, str(far.path), now) is gone
