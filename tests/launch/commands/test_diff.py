"""`diff` of runs and artifacts."""

from __future__ import annotations

import json
import shutil

from command_calls import Call, parse_json

from pipeline.execution.run import Run
from pipeline.storage.store import Store


def test_diff_of_runs(store: Store, run: Run, call: Call) -> None:
    other = Run(store, "20261121-0204-deft-duck")
    shutil.copytree(run.folder, other.folder)
    target = other.folder
    plan = json.loads((target / "plan.json").read_text())
    gpt = next(stage for stage in plan["stages"] if stage["name"] == "gpt")
    gpt["payload"]["params"]["train"]["lr"] = 3e-3
    (target / "plan.json").write_text(json.dumps(plan))
    data = parse_json(call("diff", run.id, other.id, "--json"))
    changed = [line for line in data if line["changes"] or line["metrics"]]
    assert changed == [{"stage": "gpt", "changes": ["train.lr 1e-3 -> 3e-3"], "metrics": {}}]
    assert "train.lr 1e-3 -> 3e-3" in call("diff", run.id, other.id).stdout
    assert call("diff", run.id, run.id).stdout == "no difference\n"


def test_diff_of_artifacts(run: Run, call: Call) -> None:
    shown = call("diff", "latest:gpt", "latest:sft").stdout
    assert "made by pretrain -> sft" in shown
    assert "train.steps 300 -> 120" in shown
    assert "cannot be compared" in call("diff", "latest", "latest:gpt", code=2).stderr
