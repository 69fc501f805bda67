"""A training that is stopped and goes on is the training that was never stopped."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_groups import RankGroup, running_ranks
from training_cases import Deaf, Toy, little_world

from pipeline.context import read_series
from pipeline.errors import Interrupted
from stages.alignment.encoded_rankings import read_rankings
from stages.alignment.reward_evaluation import mean_score
from stages.models.model_io import load_reward_model
from stages.objectives.reward_modeling import RewardObjective
from stages.training.checkpoint import CheckpointManager, CheckpointReader
from stages.training.ranks.rank import Rank
from stages.training.trainer import fit
from stages.training.training_params import TrainSection

pytestmark = pytest.mark.integration


def settings(**fields: object) -> TrainSection:
    known = {
        "steps": 14,
        "global_batch_size": 16,
        "lr": 3e-3,
        "micro_batch_size": 4,
        "checkpoint_interval": 0,
    }
    return TrainSection.model_validate({**known, **fields})


def stopped(where: RankGroup, objective: Toy, made: TrainSection, name: str) -> str:
    """Train until a stop is requested, and return the message."""
    with pytest.raises(Interrupted) as error:
        where.group.run(fit, objective, made, seed=5, name=name)
    where.ctx.cancel_file.unlink()
    return error.value.message


def last(where: RankGroup, name: str) -> dict[str, Any]:
    """The final checkpoint's manifest: hashes of all weights and moments, and the loop's state."""
    found = CheckpointManager(where.checkpoints(name), Rank(), 9).latest()
    assert found is not None
    return dict(found.manifest)


@pytest.mark.parametrize("zero", [1, 3])
def test_the_same_layout_continues_bit_for_bit(pair: RankGroup, zero: int) -> None:
    """With dropout: the generators too are where they would have been."""
    made = settings(zero_stage=zero)
    pair.group.run(fit, Toy(dropout=0.1), made, seed=5, name=f"calm-{zero}")
    stopped(pair, Toy(dropout=0.1, stop_at=7), made, f"hit-{zero}")
    pair.group.run(fit, Toy(dropout=0.1), made, seed=5, name=f"hit-{zero}")
    assert pair.series(f"calm-{zero}", "loss") == pair.series(f"hit-{zero}", "loss")
    assert last(pair, f"calm-{zero}") == last(pair, f"hit-{zero}")


def test_bad_steps_in_a_row_roll_back_and_leap_over_the_data(pair: RankGroup) -> None:
    bad = Toy(poison_step=9, poison_rank=0, poison_steps=3)
    made = settings(skip_limit=2, checkpoint_interval=5)
    first, second = pair.group.run(fit, bad, made, seed=3, name="rollback")
    assert first == second
    assert first["skipped_steps"] == 3
    assert list(pair.series("rollback", "loss")) == list(range(1, 15))
    log = (pair.ctx.attempt_dir / "log.txt").read_text()
    assert "back to step 5, skipping the data up to step 12" in log


def test_stops_before_and_amid_bad_steps_do_not_alter_where_training_goes_back_to(
    pair: RankGroup,
) -> None:
    """Neither the stop at a good step nor that at a bad one leaves an anchor, or resets the count;
    nor do they push out the anchor, though a single checkpoint is kept."""
    made = settings(zero_stage=2, skip_limit=2, checkpoint_interval=5, checkpoint_keep_latest=1)
    poison = {"poison_step": 9, "poison_rank": 1, "poison_steps": 3}
    calm = pair.group.run(fit, Toy(**poison), made, seed=5, name="bad-calm")
    for at, said in ((6, "stopped at step 7 of 14"), (10, "stopped at step 11 of 14")):
        assert stopped(pair, Toy(**poison, stop_at=at), made, "bad-hit") == said
    assert calm == pair.group.run(fit, Toy(**poison), made, seed=5, name="bad-hit")
    assert calm[0]["skipped_steps"] == 3
    one, other = last(pair, "bad-calm"), last(pair, "bad-hit")
    assert one["extra"]["loop"]["offset"] == 7
    assert one == other


def test_a_stop_comes_before_an_evaluation_that_is_due(single: RankGroup) -> None:
    made = settings(eval_interval=4, steps=9)
    assert stopped(single, Deaf(stop_at=3), made, "deaf") == "stopped at step 4 of 9"
    assert not single.series("deaf", "eval_loss")
    single.group.run(fit, Deaf(), made, seed=5, name="deaf")
    assert list(single.series("deaf", "eval_loss")) == [4, 8, 9]


def test_a_stop_does_not_wait_for_the_end_of_an_evaluation(single: RankGroup) -> None:
    """What was left out is made up for."""
    made = settings(eval_interval=4, steps=9)
    single.group.run(fit, Toy(), made, seed=5, name="seen")
    assert stopped(single, Toy(stop_at=3), made, "halted") == "stopped at step 4 of 9"
    assert not single.series("halted", "eval_loss")
    assert stopped(single, Toy(stop_in=8), made, "halted") == "stopped at step 8 of 9"
    assert set(single.series("halted", "eval_loss")) == {4}
    assert stopped(single, Toy(stop_in=9), made, "halted") == "stopped at step 9 of 9"
    single.group.run(fit, Toy(), made, seed=5, name="halted")
    assert single.series("halted", "eval_loss") == single.series("seen", "eval_loss")
    assert last(single, "halted") == last(single, "seen")


def test_an_evaluation_that_was_made_is_not_made_again(tmp_path: Path) -> None:
    """Killed after the last step's evaluation and before anything was published."""
    made = settings(steps=6, eval_interval=3)
    with running_ranks(tmp_path, 1) as alone:
        for name in ("train", "one"):
            first = alone.group.run(fit, Toy(), made, seed=5, name=name)
            assert first == alone.group.run(fit, Toy(), made, seed=5, name=name)
            assert "eval_loss" in first[0]
        series = alone.ctx.observed / "metrics.jsonl"
        unknown = re.sub(r'("one_eval_loss": )[^,}]+', r"\1null", series.read_text())
        unknown = re.sub(r', "crc32": \d+', "", unknown)
        series.write_text(unknown)  # as of a loss that was not finite
        again = alone.group.run(fit, Toy(), made, seed=5, name="one")
        assert math.isnan(again[0]["eval_loss"])
    points = read_series(alone.ctx.observed / "metrics.jsonl")
    for key in ("eval_loss", "one_eval_loss"):
        assert [point["step"] for point in points if key in point] == [3, 6]


@pytest.mark.parametrize("zero", [1, 3])
def test_bfloat16_keeps_and_resumes_float32_weights(pair: RankGroup, zero: int) -> None:
    name, made = f"bf16-{zero}", settings(dtype="bfloat16", zero_stage=zero, steps=6)
    pair.group.run(fit, Toy(), made, seed=5, name=f"{name}-calm")
    stopped(pair, Toy(stop_at=2), made, name)
    pair.group.run(fit, Toy(), made, seed=5, name=name)
    assert last(pair, name) == last(pair, f"{name}-calm")
    found = CheckpointManager(pair.checkpoints(name), Rank(), 9).latest()
    assert found is not None
    shapes = found.manifest["engines"]["model"]["shapes"]
    for kind in ("fp32", "exp_avg", "exp_avg_sq"):
        weight = CheckpointReader(found).read(
            f"model/{kind}/wte.weight", 0, math.prod(shapes["wte.weight"])
        )
        assert weight.dtype == torch.float32
        rounded = weight == weight.bfloat16().float()
        assert rounded.float().mean() < 0.1, f"{kind} lost its lower bits"


@pytest.mark.parametrize("zero", [1, 3])
def test_a_reward_model_is_exported_whole_and_again_after_a_resume(
    pair: RankGroup, tmp_path: Path, zero: int
) -> None:
    """Rank 0 alone scores the demonstrations: with ZeRO-3 it holds but a part of the weights. The
    second time nothing is trained before: the final checkpoint is taken up and exported."""
    world = little_world(tmp_path)
    made = settings(zero_stage=zero, steps=4, lr=1e-3)
    objective = RewardObjective(
        world / "policy",
        *(
            read_rankings(world / "preferences", split, world / "policy", 40)
            for split in ("train", "eval")
        ),
        centering_samples=20,
    )
    name = f"reward-{zero}"
    for folder in ("out", "again"):
        out = tmp_path / folder
        pair.group.run(fit, objective, made, seed=5, out=out, name=name)
    weights = [(tmp_path / f / "model.safetensors").read_bytes() for f in ("out", "again")]
    assert weights[0] == weights[1]
    objective.setup(Rank(), made, 5)
    scorer = load_reward_model(tmp_path / "out")
    best = [ranking.best_response for ranking in objective.rankings[:20]]
    assert mean_score(scorer, best, torch.device("cpu")) == pytest.approx(0, abs=1e-5)
    found = CheckpointManager(pair.checkpoints(name), Rank(), 9).latest()
    assert found is not None
    for weight in ("body.wte.weight", "score.weight", "body.h.0.mlp.c_fc.weight"):
        exported = scorer.get_parameter(weight).detach()
        trained = CheckpointReader(found).read(f"model/fp32/{weight}", 0, exported.numel())
        assert torch.equal(exported.flatten(), trained)
