"""`run` and `resume` from a shell: exit codes, Ctrl-C, what is said at the end."""

from __future__ import annotations

import html
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sample_run
from toy_alignment import build, conversation, preference

ROOT = Path(__file__).parents[2]
TOYS = ROOT / "tests" / "support" / "toys"

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


class Shell:
    """A user's terminal in an empty folder, with a package of stages installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        known = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        paths = os.pathsep.join([str(ROOT), str(TOYS)])
        self.environment = known | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        self.environment.pop("HEADWATER_STORE", None)

    def start(self, *words: str, folder: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "launch.cli", *words],
            cwd=folder or self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *words: str, code: int = 0, folder: Path | None = None) -> tuple[str, str]:
        process = self.start(*words, folder=folder)
        out, err = process.communicate()
        assert process.returncode == code, out + err
        assert "Traceback" not in out + err or words[0] == "logs"
        return out, err

    def json(self, *words: str) -> Any:
        return json.loads(self.call(*words, "--json")[0])

    def file(self, stages: dict[str, Any], **more: Any) -> str:
        (self.folder / "toy.yaml").write_text(json.dumps({"name": "toy", "stages": stages, **more}))
        return "toy.yaml"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return Shell(tmp_path_factory.mktemp("shell"))


def stages(hold: Path) -> dict[str, Any]:
    return {
        "one": {"uses": "toy.count"},
        "slow": {"uses": "toy.count", "value": 10, "steps": 6, "hold": str(hold)},
        "sum": {"uses": "toy.add", "numbers": ["${one}", "${slow}"]},
        "late": {"uses": "toy.read", "source": "data/number.txt", "after": "${slow}"},
    }


def test_interrupted_resumed_and_changed(shell: Shell) -> None:
    """One life of a run: begun, stopped by Ctrl-C, continued, and continued otherwise."""
    hold = shell.folder / "hold"
    hold.touch()
    (shell.folder / "data").mkdir()
    (shell.folder / "data" / "number.txt").write_text("7")
    process = shell.start("run", shell.file(stages(hold)))
    middle = "headwater-store/runs/*/stages/slow/attempt-1/holds"
    deadline = time.monotonic() + 240
    while not list(shell.folder.glob(middle)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    run = shell.json("status")["run"]
    assert "stopping at the next checkpoint" in out
    assert f"toy {run}: interrupted" in out
    assert f"next: headwater resume {run}" in err
    assert re.search(r"◐ resume +step 3/6", shell.call("plan", "toy.yaml")[0])

    assert shell.json("status")["stages"][3]["state"] == "pending"

    hold.unlink()
    store = shell.folder / "headwater-store"
    elsewhere = shell.folder / "elsewhere"
    elsewhere.mkdir()
    out, err = shell.call("resume", run, "--store", str(store), folder=elsewhere)
    assert f"toy {run}: finished" in out
    assert f"next: headwater show {run} --store {store}" in err
    assert shell.json("status")["stages"][3]["metrics"] == {"total": 7}
    assert (shell.folder / "headwater-store" / "runs" / run / "report.html").is_file()
    command = re.search(r"MLflow UI   (.+)", out)
    assert command
    assert "mlflow server --backend-store-uri sqlite:///" in command[1]
    status = shell.json("status")
    assert status["stages"][1]["attempts"] == 2
    assert status["stages"][2]["metrics"] == {"total": 6 + sum(range(10, 16))}

    out, _ = shell.call("resume", run, "slow.value=20")
    made = shell.json("status")
    assert made["run"] != run
    assert f"the configuration changed: new run {made['run']}, continuing {run}" in out
    assert [stage["state"] for stage in made["stages"]] == [
        "cached",
        "finished",
        "finished",
        "finished",
    ]
    assert f"continues run {run}" in shell.call("status")[0]
    changes = {line["stage"]: line["changes"] for line in shell.json("diff", run, made["run"])}
    assert changes["slow"] == ["value 10 -> 20"]
    assert "artifacts are intact" in shell.call("verify", "--all")[0]


def test_failed_stage(shell: Shell) -> None:
    config = shell.file({"bad": {"uses": "toy.count", "value": 7, "trouble": "raise"}})
    out, err = shell.call("run", config, code=1)
    run = shell.json("status")["run"]
    assert f"toy {run}: failed" in out
    assert "error: bad: toy.py:" in err
    assert "ValueError: seven is" in err
    assert f"next: headwater logs {run} bad" in err
    assert "not a number" in shell.call("logs", run, "bad")[0]


def test_model_that_does_not_load_is_not_promoted(shell: Shell) -> None:
    """The artifact is whole and says that it is a model; only trying it tells that it is none."""
    sample_run.make(shell.folder / "other", steps=30)
    words = ("latest:sft", "--model", "m", "--store", "other")
    _, err = shell.call("promote", *words, "--require", "evaluate.perplexity<1", code=3)
    assert "the model failed its smoke test" in err
    assert not (shell.folder / "other" / "registry").exists()


def test_a_failed_promotion_names_its_cause_and_the_command_to_type(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    promote = {"model": "numbers", "stage": "m", "require": ["m.totl>0"]}
    out, err = shell.call("run", shell.file({"m": {"uses": "toy.model"}}, promote=promote), code=2)
    [entry] = shell.json("list")
    command = f"headwater promote {entry['run']} --require 'm.total>0'"
    assert f"toy {entry['run']}: failed" in out
    for said in (err, shell.call("status")[1], shell.call("list")[0]):
        assert "error: promotion: the gate 'm.totl>0' needs the metric 'm.totl'" in said
        assert "did you mean 'm.total'?" in said
        assert said.strip().splitlines()[-1].startswith(f"next: {command}")
    assert (entry["done"], entry["failures"][0]["subject"]) == (1, "promotion")
    page = next(tmp_path.glob("headwater-store/runs/*/report.html")).read_text()
    assert command in html.unescape(page)
    _, refused = shell.call("promote", "latest", "--require", "m.total>0", code=3)
    assert "the model failed its smoke test" in refused


def write_rows(folder: Path) -> None:
    """Write conversations and pairs as users have them."""
    rng = random.Random(0)
    talks = [conversation(i, "train", rng).messages for i in range(24)]
    rows = [{"messages": [{"role": m.role, "content": m.content} for m in t]} for t in talks]
    (folder / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = []
    for i in range(12):
        found = preference(i, "train", rng)
        by_rank = dict(zip(found.ranks, found.responses, strict=True))
        prompt = found.prompt[0].content
        pairs.append({"prompt": prompt, "chosen": by_rank[0], "rejected": by_rank[2]})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


def test_models_without_held_out_data_are_shown(tmp_path: Path) -> None:
    """Metrics without a value are a dash, and no command fails."""
    shell = Shell(tmp_path)
    build(tmp_path / "world")
    write_rows(tmp_path)
    train = {"steps": 2, "global_batch_size": 4}
    stages = {
        "base": {"uses": "pretrained", "path": "world/policy"},
        "talks": {"uses": "conversations", "sources": ["talks.jsonl"], "eval_share": 0},
        "pairs": {"uses": "rankings", "sources": ["pairs.jsonl"], "eval_share": 0},
        "sft": {"uses": "sft", "model": "${base}", "conversations": "${talks}", "train": train},
        "rm": {"uses": "reward", "model": "${sft}", "preferences": "${pairs}", "train": train},
    }
    out, _ = shell.call("run", shell.file(stages))
    assert "perplexity –" in out
    assert "accuracy –" in out
    (run,) = shell.json("list")
    name = run["run"]
    shown = shell.call("show", name)[0] + shell.call("status", name)[0]
    assert "perplexity –" in shown
    shell.call("report", name)
    shell.call("compare", name, name)
    for path in (tmp_path / "headwater-store").rglob("results.json"):
        assert "NaN" not in path.read_text()
