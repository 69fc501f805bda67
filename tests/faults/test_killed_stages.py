"""Stages that are killed with SIGKILL, ranks and drivers, and go on to the same bytes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from rank_groups import running_ranks

from pipeline.context import Context, read_series
from pipeline.errors import Interrupted, WorkerDied
from stages.models.model_io import load_language_model, save_reward_model
from stages.models.reward_head import RewardModel
from stages.training.trainer import fit

SUPPORT = Path(__file__).parents[1] / "support"

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    import toy_alignment

    folder = toy_alignment.build(tmp_path_factory.mktemp("world"))
    torch.manual_seed(3)
    save_reward_model(
        RewardModel(load_language_model(folder / "policy")), folder / "scorer", folder / "tokenizer"
    )
    return folder


def hashes(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@contextmanager
def group(folder):
    with running_ranks(folder, 2) as pair:
        yield pair.group


def rewards(folder, name):
    points = read_series(folder / "observed" / "metrics.jsonl")
    return {p["step"]: p[f"{name}_reward"] for p in points if f"{name}_reward" in p}


PPO_DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import ppo_cases
from pipeline.context import Context
from pipeline.stage import Workers
from stages.training.ranks.worker_group import WorkerGroup
from stages.training.trainer import fit
folder, world = Path(sys.argv[2]), Path(sys.argv[3])
with WorkerGroup(Workers(num=2), Context.local(folder), backend="local") as ranks:
    ranks.run(
        fit, ppo_cases.killed(world, folder), ppo_cases.KILLED.train, seed=1, out=folder / "hit",
        name="hit",
    )
"""


def test_ppo_killed_at_every_sort_of_place_ends_in_the_same_bytes(world, tmp_path):
    """A rank after the rollouts, the driver within an epoch, a rank between PPO's gradient and
    that of the pretraining term; average of the weights and KL coefficient included."""
    import ppo_cases

    train = ppo_cases.KILLED.train
    calm = {"seed": 1, "out": tmp_path / "calm", "name": "calm"}
    hit = {"seed": 1, "out": tmp_path / "hit", "name": "hit"}
    objective = ppo_cases.killed(world, tmp_path)
    with group(tmp_path) as ranks:
        ranks.run(fit, ppo_cases.made(ppo_cases.KILLED, world), train, **calm)
        with pytest.raises(WorkerDied, match="rank 1 was killed"):
            ranks.run(fit, objective, train, **hit)
    driver = subprocess.run(
        [sys.executable, "-c", PPO_DRIVER, str(SUPPORT), str(tmp_path), str(world)], check=False
    )
    assert driver.returncode == -9
    with group(tmp_path) as ranks, pytest.raises(WorkerDied, match="rank 0 was killed"):
        ranks.run(fit, objective, train, **hit)
    stop_within_an_iteration(tmp_path, objective, train, hit)
    with group(tmp_path) as ranks:
        ranks.run(fit, objective, train, **hit)
    assert {f"{trap.place}-{trap.iteration}" for trap in ppo_cases.TRAPS} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert hashes(tmp_path / "hit") == hashes(tmp_path / "calm")
    assert (
        rewards(tmp_path, "hit") == rewards(tmp_path, "calm") and len(rewards(tmp_path, "hit")) == 5
    )


def stop_within_an_iteration(folder, objective, train, hit):
    """Rank 0 stops alone, in the middle of an iteration that would take long; its peer, which
    waits for it, is ended."""
    patient, objective.stop_grace = objective.stop_grace, 0.0
    with group(folder) as ranks:
        Context.local(folder).cancel_file.touch()
        with pytest.raises(Interrupted, match="stopped on request"):
            ranks.run(fit, objective, train, **hit)
    Context.local(folder).cancel_file.unlink()
    objective.stop_grace = patient


SFT_DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import toy_alignment
from pipeline.context import Context
from stages.sft import SftParams, sft
folder, world = Path(sys.argv[2]), Path(sys.argv[3])
train = {"steps": 60, "global_batch_size": 8}
train |= {"checkpoint_interval": 10, "checkpoint_keep_latest": 1}
params = SftParams(train=train, dropout=0.1, workers={"num": 2})
edges = toy_alignment.inputs(model=world / "policy", conversations=world / "conversations")
ctx = Context.local(folder)
sft(params, edges, ctx.out, ctx)
"""


def start(world, folder):
    return subprocess.Popen(
        [sys.executable, "-c", SFT_DRIVER, str(SUPPORT), str(folder), str(world)],
        stderr=subprocess.PIPE,
    )


def saved(folder):
    """The newest checkpoint's step."""
    found = (folder / "scratch" / "checkpoints" / "train").glob("*/manifest.json")
    return max((int(path.parent.name.rpartition("-")[2]) for path in found), default=0)


def until_saved(driver, folder):
    """Wait for a checkpoint that was not there."""
    before, deadline = saved(folder), time.monotonic() + 180
    while saved(folder) <= before:
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


def test_fine_tuning_whose_driver_and_rank_are_killed_ends_in_the_same_bytes(world, tmp_path):
    """Whenever it is: as soon as a checkpoint is there, while steps and the next save go on."""
    calm = start(world, tmp_path / "calm")
    first = start(world, tmp_path / "hit")
    until_saved(first, tmp_path / "hit")
    ranks = psutil.Process(first.pid).children()
    first.kill()
    first.wait()
    assert len(ranks) == 2 and not psutil.wait_procs(ranks, timeout=10)[1]
    second = start(world, tmp_path / "hit")
    until_saved(second, tmp_path / "hit")
    psutil.Process(second.pid).children()[1].kill()
    assert second.wait() == 1 and b"was killed" in second.stderr.read()
    assert not (tmp_path / "hit" / "out" / "config.json").exists()
    for driver in (calm, start(world, tmp_path / "hit")):
        assert driver.wait() == 0, driver.stderr.read()
    assert hashes(tmp_path / "hit" / "out") == hashes(tmp_path / "calm" / "out")
    log = (tmp_path / "hit" / "attempt-1" / "log.txt").read_text()
    assert log.count("continuing from step") == 2
