"""The run to which a second submission attaches; real heads are in tests/integration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fake_ray_head import FakeRayHead

from launch.cluster.config import Cluster, load_cluster
from launch.cluster.job_record import JobRecord
from launch.commands.submit import find_running_duplicate
from pipeline.execution.plan import make_plan
from pipeline.execution.run import Run
from pipeline.spec.spec_checker import load_spec
from pipeline.storage.store import Store

pytestmark = pytest.mark.usefixtures("toys")


@dataclass
class Submitted:
    """A run whose job is active, and what was submitted."""

    run: Run
    cluster: Cluster
    record: JobRecord
    file: Path

    def found(self, *overrides: str, **other: str) -> str | None:
        """Return the id of the run that a submission attaches to."""
        spec = load_spec(str(self.file), overrides)
        plan = make_plan(spec, self.run.store)
        run = find_running_duplicate(self.cluster, spec, plan, replace(self.record, **other))
        return run.id if run else None


@pytest.fixture
def submitted(
    store: Store, head: FakeRayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Submitted:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "number.txt").write_text("7")
    file = tmp_path / "toy.yaml"
    file.write_text("name: toy\nstages:\n  one: {uses: toy.read, source: number.txt}\n")
    (tmp_path / "far.yaml").write_text(f"address: {head.address}\n")
    spec = load_spec(str(file), ())
    run = Run.create(store, spec, make_plan(spec, store))
    record = JobRecord(str(tmp_path / "far.yaml"), str(tmp_path), (run.id,), "_ray_pkg_a.zip")
    record.write(run)
    head.answers[f"/api/jobs/{run.id}"] = {"submission_id": run.id, "status": "RUNNING"}
    return Submitted(run, load_cluster("far.yaml", str(store.root)), record, file)


def test_the_same_submission_attaches(submitted: Submitted) -> None:
    assert submitted.found() == submitted.run.id


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"root": "/elsewhere"}, "relative paths (it was submitted from"),
        ({"code": "_ray_pkg_b.zip"}, "code"),
        ({"code": ""}, "code"),
    ],
)
def test_another_directory_or_other_code_is_another_run(
    submitted: Submitted, other: dict[str, str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submitted.found(**other) is None
    shown = " ".join(capsys.readouterr().out.split())
    assert f"run {submitted.run.id} executes this pipeline file with other {what}" in shown


def test_edited_data_are_another_run(
    submitted: Submitted, capsys: pytest.CaptureFixture[str]
) -> None:
    (submitted.file.parent / "number.txt").write_text("8")
    assert submitted.found() is None
    assert "with other sources or models (one)" in " ".join(capsys.readouterr().out.split())
    (submitted.file.parent / "number.txt").write_text("7")
    assert submitted.found() == submitted.run.id


def test_another_pipeline_or_cluster_or_an_ended_job_is_another_run(
    submitted: Submitted, head: FakeRayHead
) -> None:
    assert submitted.found("one.retries.error=3") is None
    assert submitted.found(cluster="/other.yaml") is None
    head.answers[f"/api/jobs/{submitted.run.id}"]["status"] = "FAILED"
    assert submitted.found() is None


def test_a_record_of_before_has_no_code(submitted: Submitted) -> None:
    (submitted.run.folder / "job.json").write_text(
        '{"cluster": "c.yaml", "root": "/r", "jobs": ["a"]}'
    )
    assert JobRecord.read(submitted.run) == JobRecord("c.yaml", "/r", ("a",), "")
