"""A training that is stopped and goes on is the training that was never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import little_world
from rooms import Room

from stages.alignment.reward_objective import RewardObjective, appraise
from stages.models.huggingface import load_scorer
from stages.training.checkpoint import Checkpoints, Reader
from stages.training.loop import fit
from stages.training.rank import Rank
from stages.training.settings import TrainSection

pytestmark = pytest.mark.integration


def settings(**fields: object) -> TrainSection:
    known = {"steps": 14, "global_batch": 16, "lr": 3e-3, "micro_batch": 4, "checkpoint_every": 0}
    return TrainSection.model_validate({**known, **fields})


@pytest.mark.parametrize("zero", [1, 3])
def test_a_reward_model_is_exported_whole_and_again_after_a_resume(
    pair: Room, tmp_path: Path, zero: int
) -> None:
    """Rank 0 alone scores the demonstrations: with ZeRO-3 it holds but a part of the weights. The
    second time nothing is trained before: the final checkpoint is taken up and exported."""
    world = little_world(tmp_path)
    made = settings(zero=zero, steps=4, lr=1e-3)
    objective = RewardObjective(world / "policy", world / "preferences", centre_samples=20)
    name = f"reward-{zero}"
    for folder in ("out", "again"):
        out = tmp_path / folder
        pair.group.run(fit, objective, made, seed=5, out=out, name=name)
    weights = [(tmp_path / f / "model.safetensors").read_bytes() for f in ("out", "again")]
    assert weights[0] == weights[1]
    judged = appraise(Rank(), tmp_path / "out", world / "preferences", centred_on=20)
    assert judged is not None
    assert judged.demonstrations == pytest.approx(0, abs=1e-5)
    found = Checkpoints(pair.checkpoints(name), Rank(), 9).newest()
    assert found is not None
    scorer = load_scorer(tmp_path / "out")
    for weight in ("body.wte.weight", "score.weight", "body.h.0.mlp.c_fc.weight"):
        exported = scorer.get_parameter(weight).detach()
        trained = Reader(found).read(f"model/fp32/{weight}", 0, exported.numel())
        assert torch.equal(exported.flatten(), trained)
