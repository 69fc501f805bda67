"""Faults of training: processes that die or hang, disks that refuse, at every point."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from plain_engine import PlainEngine, same
from rank_groups import running_ranks
from tiny_clip import clip_world, shape_of
from toy_runs import until
from training_cases import Doomed, Faulty, Routed, Toy, happen_to, pid, routed_config

from pipeline.context import Context, read_series
from pipeline.errors import Failure, HeadwaterError, InputError, StageStalled, WorkerDied
from pipeline.stage import Workers
from stages.objectives.contrastive import ContrastiveObjective
from stages.training.checkpoint import CheckpointManager
from stages.training.ranks.rank import Rank
from stages.training.ranks.watchdog import WatchdogSection
from stages.training.ranks.worker_group import WorkerGroup
from stages.training.trainer import fit
from stages.training.training_params import TrainSection

pytestmark = pytest.mark.faults

SUPPORT = Path(__file__).parents[1] / "support"
FSYNC = os.fsync
OPERATIONS = ("mkdir", "open", "write", "fsync", "replace", "unlink", "rmdir")


class Refusing:
    """Counts the file operations of this process, and has the n-th fail: once, or from then on."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, forever: bool, error: int) -> None:
        self.count, self.at, self.forever, self.error = 0, at, forever, error
        for name in OPERATIONS:
            patch.setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self.count == self.at or (self.forever and self.count > self.at > 0):
                raise OSError(self.error, os.strerror(self.error), str(arguments[0]))
            if real is FSYNC:  # no power is cut here, and thousands of them would take minutes
                return None
            return real(*arguments, **named)

        return operation


def states(steps: int) -> list[PlainEngine]:
    """The engine after each number of steps."""
    made = []
    for step in range(steps + 1):
        engine = PlainEngine()
        for _ in range(step):
            engine.train(1)
        made.append(engine)
    return made


def save_two(folder: Path, at: int, forever: bool, error: int) -> int:
    """Two good saves, then two while the n-th file operation fails; how many operations."""
    engine, saves = PlainEngine(), CheckpointManager(folder, Rank(), keep_latest=2)
    saves.latest()
    with pytest.MonkeyPatch.context() as patch:
        refusing = Refusing(patch, 0, forever, error)
        for step in (1, 2, 3, 4):
            engine.train(1)
            if step == 3:
                refusing.count, refusing.at = 0, at
            try:
                extra = {"step": step, "tensor": torch.ones(2)}
                saves.save(step, {"model": engine}, extra)  # type: ignore[dict-item]
                saves.wait()
            except HeadwaterError as error:
                assert error.remedy, error
        return refusing.count


@pytest.mark.parametrize(
    ("error", "forever"),
    [(errno.EIO, False), (errno.ENOSPC, True)],
    ids=["one refusal", "a disk that stays full"],
)
def test_the_newest_checkpoint_loads_whatever_operation_fails(
    tmp_path: Path, forever: bool, error: int
) -> None:
    """Fail at the n-th file operation, for all n: what is found is one of the saves, whole."""
    wanted = states(4)
    total = save_two(tmp_path / "all", 0, forever, error)
    assert total > 20
    for at in range(1, total + 1):
        folder = tmp_path / str(at)
        save_two(folder, at, forever, error)
        saves = CheckpointManager(folder, Rank(), 2)
        found = saves.latest()
        assert found is not None, f"nothing is left after a failure at operation {at}"
        assert found.step >= 2
        engine = PlainEngine(seed=9)
        extra = saves.load(found, {"model": engine})  # type: ignore[dict-item]
        assert extra["step"] == found.step
        assert same(engine, wanted[found.step]), at


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, saves = PlainEngine(), CheckpointManager(tmp_path, Rank(), 2)
    saves.latest()
    Refusing(monkeypatch, 1, True, errno.ENOSPC)
    saves.save(1, {"model": engine}, {})  # type: ignore[dict-item]
    with pytest.raises(Failure, match="is full"):
        saves.wait()


def settings(**fields: object) -> TrainSection:
    known = {
        "steps": 12,
        "global_batch_size": 8,
        "lr": 3e-3,
        "checkpoint_interval": 4,
        "zero_stage": 1,
    }
    return TrainSection.model_validate({**known, **fields})


def start(folder: Path) -> WorkerGroup:
    """Two ranks as they are where there is no Ray: each imports everything itself."""
    return WorkerGroup(Workers(num=2), Context.local(folder), backend="local")


def losses(folder: Path, key: str) -> dict[int, float]:
    points = read_series(folder / "observed" / "metrics.jsonl")
    return {point["step"]: point[key] for point in points if key in point}


def test_a_killed_rank_ends_the_group_and_the_next_attempt_makes_the_same_model(
    tmp_path: Path,
) -> None:
    """SIGKILL of rank 1 between two checkpoints, with dropout on; against an undisturbed run."""
    saved = (str(tmp_path), "**/checkpoints/hit/*/manifest.json")
    mark = str(tmp_path / "mark")
    faulty = Faulty(dropout=0.1, at=6, whom=1, what="kill", mark=mark, after=saved)
    hit = {"seed": 1, "out": tmp_path / "hit", "name": "hit"}
    with start(tmp_path) as group:
        calm = {"seed": 1, "out": tmp_path / "calm", "name": "calm"}
        group.run(fit, Toy(dropout=0.1), settings(), **calm)
        for log in (tmp_path / "attempt-1").glob("rank-*.log"):
            assert not [w for w in ("Warning", "[INFO]", "[WARNING]") if w in log.read_text()]
        started = time.monotonic()
        with pytest.raises(WorkerDied, match="rank 1 was killed"):
            group.run(fit, faulty, settings(), **hit)
        assert time.monotonic() - started < 30
        with pytest.raises(WorkerDied):
            group.run(pid)
    assert not ranks_alive(tmp_path)
    with start(tmp_path) as group:
        group.run(fit, faulty, settings(), **hit)
    one, other = (
        torch.load(tmp_path / run / "weights.pt", weights_only=True) for run in ("calm", "hit")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert losses(tmp_path, "calm_loss") == losses(tmp_path, "hit_loss")
    assert "continuing from step 4 of 12" in (tmp_path / "attempt-1" / "log.txt").read_text()


def gpt(_: Path) -> Any:
    return Toy(dropout=0.1)


def switch(_: Path) -> Any:
    shape = routed_config()
    assert shape.experts
    restless = shape.experts.model_copy(update={"router_jitter": 0.01})
    return Routed(replace(shape, dropout=0.1, experts=restless))


def clip(folder: Path) -> Any:
    world = clip_world(folder / "world")
    return ContrastiveObjective(
        world / "pairs", world / "tokenizer", shape_of(world), patch_dropout=0.2, loader_threads=2
    )


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        (gpt, {}),
        (gpt, {"zero_stage": 0}),
        (gpt, {"zero_stage": 3}),
        (switch, {"zero_stage": 2, "expert_parallel_size": 2}),
        (clip, {"zero_stage": 1, "micro_batch_size": 2, "eval_samples": 8}),
    ],
    ids=["single", "zero-0", "zero-3", "switch", "clip"],
)
def test_a_run_killed_at_random_steps_is_bit_for_bit_the_run_that_was_not(
    tmp_path: Path, family: Callable[[Path], Any], layout: dict[str, int]
) -> None:
    """SIGKILL of a random rank, twice, milliseconds into a random step: while it computes or talks
    to its peer, and once right after a checkpoint fell due, while that is written. Series, weights,
    moments and position are the same."""
    seed = int(os.environ.get("HEADWATER_TEST_SEED", time.time_ns() % 2**32))
    print(f"HEADWATER_TEST_SEED={seed}")
    dice, world = random.Random(f"{seed} {family.__name__} {layout}"), 2 if layout else 1
    made = settings(checkpoint_interval=2, **layout)
    objective = family(tmp_path)
    for at in (dice.choice((2, 4, 6)), dice.randrange(7, 11)):
        doomed = Doomed(
            objective,
            at=at,
            whom=dice.randrange(world),
            delay=dice.uniform(0, 0.04),
            mark=str(tmp_path / f"killed-at-{at}"),
        )
        with running_ranks(tmp_path, world) as hit, pytest.raises(WorkerDied):
            hit.group.run(fit, doomed, made, seed=1, name="hit")
    with running_ranks(tmp_path, world) as both:
        for name in ("hit", "calm"):
            both.group.run(fit, objective, made, seed=1, name=name)
    assert losses(tmp_path, "hit_loss") == losses(tmp_path, "calm_loss")
    assert len(losses(tmp_path, "hit_loss")) == 12
    hit_last, calm_last = (
        CheckpointManager(both.checkpoints(name), Rank(), 2).latest() for name in ("hit", "calm")
    )
    assert hit_last is not None
    assert calm_last is not None
    assert hit_last.manifest == calm_last.manifest


def test_a_stopped_rank_is_found_and_its_peers_stacks_are_kept(tmp_path: Path) -> None:
    faulty = Faulty(at=5, whom=1, what="stop", mark=str(tmp_path / "mark"))
    with running_ranks(
        tmp_path / "run", 2, WatchdogSection(timeout_factor=3, min_timeout=6)
    ) as pair:
        with pytest.raises(StageStalled, match=r"rank 1 made no progress for \d+ s"):
            pair.group.run(fit, faulty, settings(), seed=1)
        assert time.time() - (tmp_path / "mark").stat().st_mtime < 30
    stacks = (tmp_path / "run" / "attempt-1" / "stacks-0.txt").read_text()
    assert "supervised.py" in stacks
    assert not ranks_alive(tmp_path / "run")
    stopped = json.loads((tmp_path / "mark").read_text())["pid"]
    assert not psutil.pid_exists(stopped)


def test_an_error_of_one_rank_is_the_error_of_the_group(tmp_path: Path) -> None:
    faulty = Faulty(at=2, whom=1, what="user", mark=str(tmp_path / "mark"))
    with running_ranks(tmp_path / "run", 2) as pair:
        group = pair.group
        with pytest.raises(Failure) as bug:
            group.run(happen_to, 1, "bug")
        assert str(bug.value) == "rank 1: ZeroDivisionError: a bug"
        log = Path(bug.value.remedy.removeprefix("see "))
        until(lambda: 'raise ZeroDivisionError("a bug")' in log.read_text())
        assert len(set(group.run(pid))) == 2, "where all ranks answered, the group goes on"
        with pytest.raises(InputError, match="the data is wrong") as user:
            group.run(fit, faulty, settings(), seed=1)
        assert user.value.remedy == "repair it"
    assert not ranks_alive(tmp_path)


def test_ranks_do_not_outlive_their_owner(tmp_path: Path) -> None:
    """SIGKILL of the owner while one rank hangs: nothing is left after ten seconds."""
    script = f"""
import sys
sys.path.insert(0, {str(SUPPORT)!r})
from pathlib import Path
from training_cases import Faulty
from pipeline.context import Context
from pipeline.stage import Workers
from stages.training.ranks.worker_group import WorkerGroup
from stages.training.trainer import fit
from stages.training.training_params import TrainSection
ctx = Context.local(Path({str(tmp_path / "run")!r}))
with WorkerGroup(Workers(num=2), ctx, backend="local") as g:
    hang = Faulty(at=2, whom=0, what="hang", mark={str(tmp_path / "mark")!r})
    g.run(fit, hang, TrainSection(steps=5, global_batch_size=4), seed=1)
"""
    owner = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 120
    while not (tmp_path / "mark").exists():
        assert time.monotonic() < deadline
        assert owner.poll() is None
        time.sleep(0.05)
    ranks = ranks_alive(tmp_path / "run")
    assert len(ranks) == 2
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive


def ranks_alive(folder: Path) -> list[psutil.Process]:
    """The processes that still write a rank's log under this folder."""
    found = []
    for process in psutil.process_iter(["pid"]):
        try:
            if any(str(folder) in file.path for file in process.open_files()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return [process for process in found if process.pid != os.getpid()]
