"""The active runs of a cluster."""

from __future__ import annotations

import pytest
from fake_ray_head import FakeRayHead, make_submitted_run

from launch.commands import cluster
from pipeline.storage.store import Store


def test_active_runs_are_named_by_run_not_by_job(
    store: Store, head: FakeRayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, far = make_submitted_run(store, head.address)
    second = {"submission_id": f"{run.id}-2", "metadata": {"run": run.id}}
    other = {"submission_id": "other-job", "metadata": None}
    active = {"type": "SUBMISSION", "status": "RUNNING"}
    head.answers["/api/jobs/"] = [{**active, **second}, {**active, **other}]
    assert cluster.active_runs(far) == [run.id, "other-job"]
    head.answers["/api/jobs/"] = [{**active, **second}]
    monkeypatch.setattr(cluster, "FINALIZE_SECONDS", 0)  # the run is over, its job finalizes it
    assert cluster.active_runs(far) == [run.id]
