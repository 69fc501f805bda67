"""A package outside the tree adds a model family, an optimizer, an objective and a kind.

Each is one file of `tests/support/outside/acorn`. One pipeline uses all four through the commands:
planned without torch, trained by two ranks, exported, and promoted.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.tracking import mlflow_client
from pipeline.context import read_series
from pipeline.storage.store import Store

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
OUTSIDE = ROOT / "tests" / "support" / "outside"
STEPS = 24
PIPELINE = {
    "name": "grown",
    "stages": {
        "clean": {"uses": "clean", "sources": ["corpus"]},
        "tokenizer": {"uses": "tokenize.train", "documents": "${clean}", "vocab_size": 320},
        "tokens": {
            "uses": "tokenize.pack",
            "documents": "${clean}",
            "tokenizer": "${tokenizer}",
        },
        "model": {
            "uses": "pretrain",
            "tokens": "${tokens}",
            "tokenizer": "${tokenizer}",
            "model": {
                "family": "parallel",
                "num_layers": 2,
                "hidden_size": 32,
                "num_heads": 2,
                "context_length": 64,
            },
            "objective": {"type": "halves", "warmup": 8},
            "train": {
                "optimizer": "signum",
                "steps": STEPS,
                "global_batch_size": 8,
                "lr": 3e-3,
                "eval_samples": 8,
                "zero_stage": 1,
            },
            "workers": {"num": 2, "cpus": 1},
        },
        "small": {"uses": "quantize", "model": "${model}"},
    },
}
WITHOUT_TORCH = (
    "import sys; sys.modules['torch'] = None\nfrom launch.cli import main\nsys.exit(main())"
)
OPENED = """
import json, pkgutil, sys
from pathlib import Path
import torch
from pipeline.kind import find_kind
from stages.models.model_io import load_language_model
from stages.models.registry import find_family

whole = load_language_model(Path(sys.argv[1]))
small = pkgutil.resolve_name(find_kind("QuantizedModel").reader)(Path(sys.argv[2]))
tokens = torch.arange(3, 40)[None]
weight = small.blocks[0].enter.weight
print(json.dumps({
    "family": find_family(whole.config).name,
    "parameters": sum(parameter.numel() for parameter in whole.parameters()),
    "difference": (small(tokens) - whole(tokens)).abs().max().item(),
    "levels": len((weight / (weight.abs().max() / 127)).round().unique()),
}))
"""


class Shell:
    """A terminal in a folder with a corpus, where the package is installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        known = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        known.pop("HEADWATER_STORE", None)
        paths = os.pathsep.join([str(OUTSIDE), str(ROOT)])
        self.environment = known | {
            "PYTHONPATH": paths,
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        chance = random.Random(0)
        words = "the of and to that have with be reader opens closed file path value given".split()  # noqa: SIM905
        lines = [
            json.dumps({"text": ". ".join(" ".join(chance.choices(words, k=8)) for _ in range(30))})
            for _ in range(60)
        ]
        (folder / "corpus").mkdir()
        (folder / "corpus" / "a.jsonl").write_text("\n".join(lines))
        (folder / "grown.yaml").write_text(json.dumps(PIPELINE))

    def python(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def call(self, *words: str) -> str:
        return self.python("-m", "launch.cli", *words)

    def json(self, *words: str) -> Any:
        return json.loads(self.call(*words, "--json"))


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return Shell(tmp_path_factory.mktemp("outside"))


@pytest.fixture(scope="module")
def stages(shell: Shell) -> dict[str, dict[str, Any]]:
    """The stages of the finished run, by name."""
    shell.call("run", "grown.yaml")
    shown = shell.json("show", "latest")
    assert shown["state"] == "finished"
    return {stage["name"]: stage for stage in shown["stages"]}


def test_each_thing_is_one_file() -> None:
    files = {path.stem for path in (OUTSIDE / "acorn").glob("*.py")} - {"__init__"}
    assert files == {"parallel_decoder", "signum", "halves", "quantize"}
    for package in ("pipeline", "stages", "launch"):
        for path in (ROOT / package).rglob("*.py"):
            assert "acorn" not in path.read_text(), path


def test_the_plan_prices_family_and_optimizer_without_torch(shell: Shell) -> None:
    plan = json.loads(shell.python("-c", WITHOUT_TORCH, "plan", "grown.yaml", "--json"))
    stages = {stage["name"]: stage for stage in plan["stages"]}
    assert stages["small"]["kind"] == "QuantizedModel"
    cost = stages["model"]["estimate"]
    width, inner, vocabulary = 32, 128, 320
    block = width * (3 * width + inner) + (width + inner) * width + width
    assert cost["parameters"] == vocabulary * width + 2 * block + width
    momentum, master, ranks = 4, 4, 2
    assert cost["optimizer_bytes"] == (momentum + master) * cost["parameters"] / ranks
    assert "objective.warmup" in shell.call("stages", "pretrain")


def test_two_ranks_train_the_family_by_the_optimizer_on_the_objective(
    stages: dict[str, dict[str, Any]],
) -> None:
    observed = Path(stages["model"]["path"]) / "observed"
    points = [point for point in read_series(observed / "metrics.jsonl") if "loss" in point]
    assert len(points) == STEPS
    for step, point in enumerate(points, 1):
        expected = 0.5 * (point["loss_first"] + min(1.0, step / 8) * point["loss_second"])
        assert point["loss"] == pytest.approx(expected, rel=1e-6)  # finite, too
    for name in ("loss_first", "loss_second"):
        assert points[-1][name] < points[0][name] - 1
    titles = [panel["title"] for panel in json.loads((observed / "panels.json").read_text())]
    assert {"Halves", "Continuations"} <= set(titles)


def test_the_exported_folders_load_by_the_registries(
    shell: Shell, stages: dict[str, dict[str, Any]]
) -> None:
    model, small = (Path(stages[name]["path"]) for name in ("model", "small"))
    assert json.loads((model / "config.json").read_text())["model_type"] == "parallel_decoder"
    found = json.loads(shell.python("-c", OPENED, str(model), str(small)))
    assert found["family"] == "parallel"
    assert found["parameters"] == stages["model"]["metrics"]["parameters"]
    assert 0 < found["difference"] < 0.1
    assert 2 < found["levels"] <= 255


def test_the_kind_is_shown_and_promoted(shell: Shell, stages: dict[str, dict[str, Any]]) -> None:
    run = stages["small"]["made_by"]["id"]
    row = next(line for line in shell.call("show", run).splitlines() if "QuantizedModel" in line)
    assert "rounding_error" in row and "+1" in row  # the headline metric is among the two shown
    gate = "small.rounding_error<0.1"
    record = shell.json("promote", f"{run}:small", "--model", "grown", "--require", gate)
    assert record["kind"] == "QuantizedModel" and record["to"] == 1
    assert [line["passed"] for line in record["gates"]] == [True]
    store = Store(shell.folder / "headwater-store")
    client = mlflow_client.connect(mlflow_client.tracking_uri(store))
    version = client.get_model_version_by_alias("grown", "champion")
    assert int(version.version) == 1
    assert shell.call("generate", "grown@champion", "reader returns", "--tokens", "8")
