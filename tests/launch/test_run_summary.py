"""The summary that is printed when a run ends."""

from __future__ import annotations

import json

import pytest

from launch.run_summary import print_summary
from launch.stage_warnings import stage_warnings
from pipeline.execution.run import Run


def test_summary_names_what_mlflow_lacks(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def warning(reason: str) -> str:
        command = f"headwater report {run.id} --sync --store {run.store.root}"
        return f"MLflow lacks part of this run ({reason}); `{command}` sends the rest"

    print_summary(run, run.status())
    assert warning("there was not enough time to send it") in capsys.readouterr().err
    seq = run.events()[-1]["seq"]
    (run.folder / "mlflow.json").write_text(json.dumps({"seq": seq - 1, "problem": "MLflow: no"}))
    print_summary(run, run.status())
    assert warning("MLflow: no") in capsys.readouterr().err
    (run.folder / "mlflow.json").write_text(json.dumps({"seq": seq, "problem": ""}))
    print_summary(run, run.status())
    assert "MLflow" not in capsys.readouterr().err


def test_summary_prints_what_the_stages_left_out(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run.status()
    stage = next(stage for stage in status.stages if stage.path)
    observed = run.store.root / stage.path / "observed"
    observed.mkdir(exist_ok=True)
    warning = {"message": "9 of 100 documents (9.0%) are left out", "remedy": "raise a limit"}
    (observed / "warnings.json").write_text(json.dumps([warning]))
    try:
        print_summary(run, status)
    finally:
        (observed / "warnings.json").unlink()
    printed = " ".join(capsys.readouterr().err.split())
    assert f"warning: {stage.name}: {warning['message']} {warning['remedy']}" in printed


@pytest.mark.parametrize(
    "damaged",
    ['[{"messagf": "x", "remedy": "y"}]', '[{"message": 1, "remedy": "y"}]', '["x"]', "7"],
)
def test_damaged_warnings_are_left_out(run: Run, damaged: str) -> None:
    stage = next(stage for stage in run.status().stages if stage.path)
    path = run.store.root / stage.path / "observed" / "warnings.json"
    path.write_text(damaged)
    try:
        assert stage_warnings(run.store, stage) == []
    finally:
        path.unlink()
