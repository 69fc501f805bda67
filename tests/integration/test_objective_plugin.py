"""An objective from a package outside the tree, in one file: planned, trained, exported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import outside_package
import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PLUGIN = '''
from dataclasses import dataclass
from typing import Literal

from pipeline import panels
from stages.objectives.causal_lm import CausalLMObjective
from stages.objectives.objective_registry import ObjectiveParams, register_objective
from stages.training.objective import Loss


@register_objective
class HalvesParams(ObjectiveParams):
    """Parameters of a loss on each half of a window."""

    type: Literal["halves"] = "halves"
    warmup: int = 4
    """Steps in which the coefficient of the second half rises to 1. Default: 4."""

    def build(self, task):
        """Return the objective."""
        return Halves(**vars(task), warmup=self.warmup)

    def panels(self, config):
        """Yield the curves of both losses."""
        yield panels.curve("Halves", ["loss_first", "loss_second"])


@dataclass
class Halves(CausalLMObjective):
    """Next-token prediction with a loss on each half of a window."""

    warmup: int = 4

    def open(self, rank):
        self.coefficients = {"second": lambda step: min(1.0, (step + 1) / self.warmup)}
        return super().open(rank)

    def units(self, batch):
        half = batch["targets"].shape[1] // 2
        rows = len(batch["targets"])
        return {"first": rows * half, "second": rows * (batch["targets"].shape[1] - half)}

    def loss(self, model, batch):
        from torch.nn import functional as F

        half = batch["targets"].shape[1] // 2
        logits = model(batch["tokens"]).transpose(1, 2)
        parts = {"first": slice(0, half), "second": slice(half, None)}
        return {
            name: Loss(F.cross_entropy(logits[..., at], batch["targets"][:, at], reduction="sum"))
            for name, at in parts.items()
        }
'''
TRAIN = """
import sys
from pathlib import Path

from stages.pretrain import PretrainParams, pretrain

params = PretrainParams.model_validate({
    "model": {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "context_length": 16},
    "objective": {"type": "halves"},
    "train": {"steps": 8, "global_batch_size": 8, "lr": 1e-2, "eval_samples": 8},
    "workers": {"num": 2},
})
assert type(params.objective).__name__ == "HalvesParams"
assert PretrainParams().objective.type == "causal_lm"
assert PretrainParams(objective={"z_loss_coef": 1e-4}).objective.type == "causal_lm"
assert not list(params.check({}))
assert params.estimate({})
assert "torch" not in sys.modules

from pipeline.context import Context
import toy_alignment

world, folder = Path(sys.argv[1]), Path(sys.argv[2])
ctx = Context.local(folder)
edges = toy_alignment.inputs(tokens=world / "tokens", tokenizer=world / "tokenizer")
pretrain(params, edges, ctx.out, ctx)
"""


def test_one_file_adds_an_objective(tmp_path: Path) -> None:
    import toy_alignment
    from transformers import AutoModelForCausalLM

    from pipeline.context import read_series

    world = toy_alignment.build(tmp_path / "world")
    (tmp_path / "packages").mkdir()
    outside_package.write(tmp_path / "packages", "halves", PLUGIN)
    paths = [tmp_path / "packages", ROOT, ROOT / "tests/support"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}

    def python(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    listing = python("-m", "launch.cli", "stages", "pretrain")
    assert "objective.warmup" in listing
    python("-c", TRAIN, str(world), str(tmp_path / "work"))
    out = tmp_path / "work" / "out"
    observed = next((tmp_path / "work").rglob("metrics.jsonl")).parent
    points = [point for point in read_series(observed / "metrics.jsonl") if "loss" in point]
    assert len(points) == 8
    for step, point in enumerate(points, 1):
        expected = point["loss_first"] + min(1.0, step / 4) * point["loss_second"]
        assert point["loss"] == pytest.approx(expected, rel=1e-6)
    assert points[-1]["loss_first"] < points[0]["loss_first"] - 0.1
    titles = [panel["title"] for panel in json.loads((observed / "panels.json").read_text())]
    assert "Halves" in titles
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == 340
