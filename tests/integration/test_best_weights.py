"""The exported weights are those of the best evaluation, also of a training that was killed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from rank_groups import RankGroup, running_ranks
from training_cases import Rated

from pipeline.errors import WorkerDied
from stages.training.best_weights import BestMetric
from stages.training.checkpoint import Checkpoint, CheckpointReader, read_manifest
from stages.training.trainer import fit
from stages.training.training_params import TrainSection

pytestmark = pytest.mark.integration

RATINGS = {3: 2.0, 6: 1.0, 9: 1.0, 12: 3.0, 14: 1.5}
RATING = BestMetric("eval_rating")


def settings(zero: int) -> TrainSection:
    """Evaluations between checkpoints."""
    return TrainSection(
        steps=14, global_batch_size=16, lr=3e-3, eval_interval=3, checkpoint_interval=4,
        zero_stage=zero, checkpoint_keep_latest=9,
    )  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "weights.pt", weights_only=True)
    return found


def at_step(ranks: RankGroup, step: int) -> dict[str, torch.Tensor]:
    """Return the weights of a training of so many steps of the same schedule."""
    made = settings(1).model_copy(update={"checkpoint_interval": step})
    rated = Rated(at=-1, ratings=RATINGS)
    ranks.group.run(fit, rated, made, seed=3, name=f"to-{step}")
    (folder,) = ranks.checkpoints(f"to-{step}").glob(f"*-step-{step:08d}")
    saved = Checkpoint(folder, read_manifest(folder))
    reader, shapes = CheckpointReader(saved), saved.manifest["engines"]["model"]["shapes"]
    return {
        name: reader.read(f"model/fp32/{name}", 0, math.prod(shape)).view(shape)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, torch.Tensor]]:
    with running_ranks(tmp_path_factory.mktemp("wanted"), 2) as ranks:
        return {step: at_step(ranks, step) for step in (6, 12)}


@pytest.mark.parametrize(("zero", "kill_at"), [(1, 5), (3, 7), (1, 10)])
def test_the_first_of_the_lowest_is_exported(
    tmp_path: Path, wanted: dict[int, dict[str, torch.Tensor]], zero: int, kill_at: int
) -> None:
    """Killed before the best evaluation, after it before the next checkpoint, and after that."""
    rated = Rated(at=kill_at, whom=1, mark=str(tmp_path / "mark"), ratings=RATINGS)
    run = {"seed": 3, "out": tmp_path / "model", "keep": RATING}
    with running_ranks(tmp_path / "run", 2) as ranks, pytest.raises(WorkerDied):
        ranks.group.run(fit, rated, settings(zero), **run)
    with running_ranks(tmp_path / "run", 2) as ranks:
        final = ranks.group.run(fit, rated, settings(zero), **run)[0]
        assert final["kept_step"] == 6
        assert final["eval_rating"] == 1.0
        assert final["eval_loss"] == ranks.series("train", "eval_loss")[6]
        assert len(list(ranks.checkpoints("train-best").iterdir())) == 1
    found = weights(tmp_path / "model")
    assert found.keys() == wanted[6].keys()
    assert (wanted[12]["wte.weight"] - wanted[6]["wte.weight"]).abs().max() > 1e-3
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[6][name], rtol=0, atol=1e-4)


def test_the_highest_is_exported_if_it_is_the_best(
    tmp_path: Path, wanted: dict[int, dict[str, torch.Tensor]]
) -> None:
    rated, keep = Rated(at=-1, ratings=RATINGS), BestMetric("eval_rating", highest=True)
    with running_ranks(tmp_path / "run", 2) as ranks:
        final = ranks.group.run(fit, rated, settings(2), seed=3, out=tmp_path / "model", keep=keep)[
            0
        ]
        nothing = BestMetric("eval_nothing")
        last = ranks.group.run(
            fit, rated, settings(2), seed=3, name="b", out=tmp_path / "last", keep=nothing
        )[0]
    assert final["kept_step"] == 12
    for name, value in weights(tmp_path / "model").items():
        torch.testing.assert_close(value, wanted[12][name], rtol=0, atol=1e-4)
    assert "kept_step" not in last
    assert last["eval_rating"] == RATINGS[14]
