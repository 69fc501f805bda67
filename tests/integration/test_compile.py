"""Compiled blocks under DeepSpeed: the same numbers, under the same names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from rank_groups import RankGroup
from training_cases import Compiled

from stages.training.trainer import fit
from stages.training.training_params import TrainSection

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
]


def settings(zero: int) -> TrainSection:
    known = {
        "steps": 4,
        "global_batch_size": 16,
        "lr": 3e-3,
        "micro_batch_size": 4,
        "warmup_steps": 0,
    }
    return TrainSection.model_validate({**known, "checkpoint_interval": 0, "zero_stage": zero})


def test_compiled_blocks_train_as_plain_ones_do_on_every_layout(
    single: RankGroup, pair: RankGroup, tmp_path: Path
) -> None:
    single.group.run(fit, Compiled(compile=False), settings(0), seed=3, name="eager")
    wanted = single.series("eager", "loss")
    layouts = {"single": (single, 0), "zero-0": (pair, 0), "zero-1": (pair, 1), "zero-2": (pair, 2)}
    for layout, (group, zero) in layouts.items():
        name, out = f"compiled-{layout}", tmp_path / layout
        made = Compiled(activation_checkpointing=layout == "zero-1")
        group.group.run(fit, made, settings(zero), seed=3, name=name, out=out)
        assert group.series(name, "loss") == pytest.approx(wanted, abs=1e-4), layout
        assert group.group.run(compiled)[0] > 0, "the compiler was at work"
        (saved,) = group.checkpoints(name).glob("*/manifest.json")
        names = json.loads(saved.read_text())["engines"]["model"]["shapes"]
        assert "h.0.attn.c_attn.weight" in names
        assert set(torch.load(out / "weights.pt", weights_only=True)) == set(names)


def compiled(rank: object) -> int:
    """Graphs that this rank has compiled."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
