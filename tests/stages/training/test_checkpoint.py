"""Checkpoints are restored exactly, at any number of ranks, or not at all."""

from __future__ import annotations

import errno
import json
import threading
import time
from pathlib import Path

import pytest
import torch
from plain_engine import PlainEngine, same

from pipeline.errors import Failure
from stages.training import checkpoint as ck
from stages.training.checkpoint import CheckpointManager
from stages.training.ranks.rank import Rank


def saved(
    folder: Path, steps: int = 3, keep: int = 2, every: int = 0
) -> tuple[CheckpointManager, PlainEngine]:
    """Save checkpoints at steps 1 to `steps` of one engine."""
    engine, saves = PlainEngine(), CheckpointManager(folder, Rank(), keep, keep_interval=every)
    assert saves.latest() is None
    for step in range(1, steps + 1):
        engine.train(1)
        saves.save(step, {"model": engine}, {"loop": {"step": step}})  # type: ignore[dict-item]
        saves.wait()
    return saves, engine


def test_weights_states_counts_and_extra_state_are_restored(tmp_path: Path) -> None:
    engine, saves = PlainEngine(), CheckpointManager(tmp_path, Rank(), keep_latest=2)
    saves.latest()
    engine.train(4)
    extra = {"controller": {"beta": 0.25, "mean": torch.arange(3.0)}, "names": ["a", None]}
    saves.save(4, {"model": engine}, extra)  # type: ignore[dict-item]
    found = saves.latest()
    assert found is not None
    assert found.step == 4
    other = PlainEngine(seed=9)
    back = CheckpointManager(tmp_path, Rank(), 2).load(found, {"model": other})  # type: ignore[dict-item]
    assert same(engine, other)
    assert repr(back) == repr(extra)
    engine.train(3, seed=5)
    other.train(3, seed=5)
    assert same(engine, other)


def test_training_continues_while_a_save_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, write = threading.Event(), ck.safetensors_io.write

    def slow(*arguments: object) -> object:
        go.wait()
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ck.safetensors_io, "write", slow)
    engine, twin, saves = PlainEngine(), PlainEngine(), CheckpointManager(tmp_path, Rank(), 2)
    saves.latest()
    engine.train(2)
    twin.train(2)
    saves.save(2, {"model": engine}, {})  # type: ignore[dict-item]
    engine.train(2)
    go.set()
    found = saves.latest()
    assert found is not None
    other = PlainEngine(seed=9)
    saves.load(found, {"model": other})  # type: ignore[dict-item]
    assert same(twin, other)
    assert not same(engine, other)


@pytest.mark.parametrize(("then", "now"), [(1, 2), (2, 1), (3, 2), (2, 5)])
def test_any_number_of_ranks_loads_what_any_number_saved(
    tmp_path: Path, then: int, now: int
) -> None:
    engines = [PlainEngine(rank=Rank(r, then)) for r in range(then)]
    folder = tmp_path / "000001-step-00000003"
    facts = {"schema": 1, "step": 3, "extra": {}, "engines": {}}
    for rank, engine in enumerate(engines):
        engine.train(3)
        facts["engines"] = {"m": {"updates": engine.updates, "shapes": engine.shapes}}
        share = {
            f"m/{kind}/{f.name}@{f.start}": view
            for f in engine.fragments()
            for kind, view in f.views.items()
        }
        ck.write_rank_files(folder, rank, share, facts, {})
    ck.commit(folder, facts, ck.wait_for_completion_files(folder, then))
    numbers = sum(f.count for engine in engines for f in engine.fragments())
    assert numbers == sum(p.numel() for p in engines[0].module.parameters())
    for rank in range(now):
        found = CheckpointManager(tmp_path, Rank(), 2).latest()
        assert found is not None
        other = PlainEngine(seed=9, rank=Rank(rank, now))
        CheckpointManager(tmp_path, Rank(rank), 2).load(found, {"m": other})  # type: ignore[dict-item]
        assert same(engines[0], other)


def test_the_latest_checkpoints_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, steps=5, keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "000004-step-00000004",
        "000005-step-00000005",
    ]


def test_checkpoints_of_the_keep_interval_are_kept_too(tmp_path: Path) -> None:
    saved(tmp_path, steps=9, keep=2, every=3)
    kept = [int(path.name.split("-")[2]) for path in sorted(tmp_path.iterdir())]
    assert kept == [3, 6, 8, 9]


def test_the_newest_rollback_target_is_kept_and_found_behind_interruptions(tmp_path: Path) -> None:
    engine, saves = PlainEngine(), CheckpointManager(tmp_path, Rank(), keep_latest=1)
    saves.latest()
    for step, anchor in ((5, True), (10, True), (13, False), (17, False)):
        engine.train(1)
        saves.save(step, {"model": engine}, {}, for_rollback=anchor)  # type: ignore[dict-item]
    newest, anchored = saves.latest(), saves.latest(for_rollback=True)
    assert newest is not None
    assert anchored is not None
    assert (newest.step, anchored.step) == (17, 10)
    assert len(list(tmp_path.iterdir())) == 2


def test_no_rollback_target_is_found_without_one(tmp_path: Path) -> None:
    saves, _ = saved(tmp_path)
    assert saves.latest(for_rollback=True) is None
    assert saves.latest() is not None


def test_a_checkpoint_from_before_rollback_targets_is_still_loaded(tmp_path: Path) -> None:
    saved(tmp_path)
    path = sorted(tmp_path.iterdir())[-1] / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["anchor"], manifest["seal"]
    path.write_text(json.dumps({**manifest, "seal": ck._seal(manifest)}))
    saves = CheckpointManager(tmp_path, Rank(), 2)
    found = saves.latest()
    assert found is not None
    assert found.step == 3
    assert saves.latest(for_rollback=True) is None
    ck.prune(tmp_path, keep_latest=1)
    assert [path.name for path in tmp_path.iterdir()] == ["000003-step-00000003"]


def test_waiting_for_a_slow_disk_sends_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is slow until the waiting rank has sent two heartbeats."""
    rank, write = Rank(), ck.safetensors_io.write

    def slow(*arguments: object) -> object:
        deadline = time.monotonic() + 60
        while rank.progress.waits < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ck.safetensors_io, "write", slow)
    saves = CheckpointManager(tmp_path, rank, 2)
    saves.latest()
    saves.save(1, {"model": PlainEngine()}, {})  # type: ignore[dict-item]
    saves.wait()
    assert rank.progress.waits >= 2
    assert rank.progress.count == 0


def files_of_newest() -> list[str]:
    return ["manifest.json", "rank-0.safetensors"]


@pytest.mark.parametrize("name", files_of_newest())
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.99])
def test_a_flipped_bit_is_logged_and_the_checkpoint_before_is_used(
    tmp_path: Path, name: str, place: float
) -> None:
    saved(tmp_path)
    path = sorted(tmp_path.iterdir())[-1] / name
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 4
    path.write_bytes(data)
    said: list[str] = []
    found = CheckpointManager(tmp_path, Rank(), 2, log=said.append).latest()
    assert found is not None
    assert found.step == 2
    assert any(name in line for line in said)
    assert said[-1] == "falling back from checkpoint 000003-step-00000003 to the one before"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", files_of_newest())
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_cut_or_missing_file_falls_back(tmp_path: Path, name: str, how: str) -> None:
    saved(tmp_path)
    path = sorted(tmp_path.iterdir())[-1] / name
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    found = CheckpointManager(tmp_path, Rank(), 2).latest()
    assert found is not None
    assert found.step == 2


def test_save_numbers_continue_after_existing_ones(tmp_path: Path) -> None:
    """A save after a resume is newer than all saves before it, whatever its step."""
    saved(tmp_path, steps=3)
    engine, saves = PlainEngine(), CheckpointManager(tmp_path, Rank(), 2)
    saves.latest()
    saves.save(1, {"model": engine}, {})  # type: ignore[dict-item]
    found = saves.latest()
    assert found is not None
    assert found.path.name == "000004-step-00000001"


def test_weights_that_are_not_finite_are_never_committed(tmp_path: Path) -> None:
    saves, engine = saved(tmp_path)
    said: list[str] = []
    saves = CheckpointManager(tmp_path, Rank(), 2, log=said.append)
    saves.latest()
    with torch.no_grad():
        next(engine.module.parameters())[0, 0] = torch.nan
    saves.save(4, {"model": engine}, {})  # type: ignore[dict-item]
    found = saves.latest()
    assert found is not None
    assert found.step == 3
    assert said == ["checkpoint 000004-step-00000004 is dropped: a number is not finite"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    saves, _ = saved(tmp_path)
    found = saves.latest()
    assert found is not None
    with pytest.raises(Failure, match=r"another model: model differs in 0\.bias, 0\.weight"):
        saves.load(found, {"model": PlainEngine(width=6)})  # type: ignore[dict-item]
    with pytest.raises(Failure, match="another model: critic"):
        saves.load(found, {"critic": PlainEngine()})  # type: ignore[dict-item]


def test_missing_numbers_are_an_error(tmp_path: Path) -> None:
    saves, _ = saved(tmp_path)
    found = saves.latest()
    assert found is not None
    with pytest.raises(Failure, match="20 numbers are missing"):
        ck.CheckpointReader(found).read("model/fp32/0.weight", 10, 30)


def test_a_rank_that_never_writes_is_named(tmp_path: Path) -> None:
    ck.write_rank_files(tmp_path, 0, {"a": torch.ones(2)}, {"step": 1}, {})
    with pytest.raises(Failure, match="rank-1 did not write its files"):
        ck.wait_for_completion_files(tmp_path, 2, timeout=0.05)


def test_a_failed_save_is_raised_by_the_next(tmp_path: Path) -> None:
    saves, engine = saved(tmp_path / "ok")
    saves.folder = tmp_path / "file"
    saves.folder.write_text("in the way")
    saves.save(4, {"model": engine}, {})  # type: ignore[dict-item]
    with pytest.raises((Failure, OSError)):
        saves.save(5, {"model": engine}, {})  # type: ignore[dict-item]


def test_completion_files_list_the_files_of_a_rank(tmp_path: Path) -> None:
    saved(tmp_path, steps=1)
    folder = tmp_path / "000001-step-00000001"
    note = json.loads((folder / "rank-0.json").read_text())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert note["files"] == manifest["files"]
    assert manifest["engines"]["model"]["shapes"]["0.weight"] == [5, 4]


def test_an_unreadable_manifest_does_not_count_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves, _ = saved(tmp_path)
    before = sorted(path for path in tmp_path.rglob("*"))

    def refuse(*_: object, **__: object) -> str:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", refuse)
        with pytest.raises(Failure, match="cannot read: Input/output error"):
            saves.latest()
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert saves.latest() is not None
