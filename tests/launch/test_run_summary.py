"""The summary that is printed when a run ends."""

from __future__ import annotations

import json

import pytest

from launch.run_summary import print_summary
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
