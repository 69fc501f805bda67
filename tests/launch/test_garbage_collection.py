"""Garbage collection keeps everything that a kept run or an alias reaches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from store_cases import A, B, C, D, publish, work

from launch import garbage_collection
from launch.garbage_collection import KEPT_PROMOTIONS, Garbage, collect_garbage
from pipeline.errors import Failure
from pipeline.storage.artifact import MANIFEST
from pipeline.storage.store import Store

RUNS = ("20260101-0000-able-bear", "20260102-0000-able-bear", "20260103-0000-able-bear")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def plan(store: Store, run: str, *stages: tuple[str, str]) -> None:
    folder = store.root / "runs" / run
    folder.mkdir(parents=True, exist_ok=True)
    listed = [{"uses": uses, "fingerprint": fp} for uses, fp in stages]
    (folder / "plan.json").write_text(json.dumps({"stages": listed, "pipeline": "p"}))


def promote(store: Store, *fingerprints: str, alias: str = "champion") -> Path:
    log = store.root / "registry" / "m" / "promotions.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        for fp in fingerprints:
            file.write(json.dumps({"alias": alias, "fingerprint": fp}) + "\n")
    return log


def test_artifacts_that_runs_aliases_and_lineage_reach_are_kept(store: Store) -> None:
    root = publish(store, "clean", A)
    publish(store, "pack", B, root)
    lonely = publish(store, "pack", C)
    publish(store, "train", D)
    plan(store, RUNS[0], ("pack", C))
    plan(store, RUNS[1], ("pack", B))
    promote(store, D)
    (store.root / "runs" / "20260104-0000-able-bear").mkdir()  # is being created, has no plan yet
    size = sum(path.stat().st_size for path in lonely.path.rglob("*") if path.is_file())
    report = collect_garbage(store, keep=2)
    assert [item.path for item in report.garbage] == [lonely.path]
    assert (report.dry, report.kept, report.size) == (True, 3, size)
    assert lonely.path.exists()
    collect_garbage(store, keep=2, dry=False)
    assert not lonely.path.exists()
    assert not list((store.root / "tmp").iterdir())
    assert {artifact.uses for artifact in store.artifacts()} == {"clean", "pack", "train"}
    assert collect_garbage(store, keep=3).garbage == []


def test_only_the_last_promotions_of_each_alias_are_kept(store: Store) -> None:
    prints = [f"{k:016x}" for k in range(KEPT_PROMOTIONS + 1)]
    for fp in prints:
        publish(store, "train", fp)
    log = promote(store, *prints)
    assert [item.path.name for item in collect_garbage(store).garbage] == prints[:1]
    promote(store, prints[0], alias="canary")
    assert collect_garbage(store).garbage == []
    with log.open("a") as file:
        file.write('{"alias": "champ')  # a kill: the last line is torn, and is not counted
    assert collect_garbage(store).garbage == []
    log.write_text("{spoilt\n")
    with pytest.raises(Failure, match="unreadable"):
        collect_garbage(store, dry=False)
    assert len(list(store.artifacts())) == len(prints)


def test_stale_work_is_removed_unless_leased_or_resumable(store: Store) -> None:
    for uses, fp in (("stale", A), ("leased", B), ("resumable", C), ("published", D)):
        work(store, uses, fp)
    publish(store, "published", D)
    work(store, "published", D)
    plan(store, RUNS[0], ("resumable", C), ("published", D))
    lease = store.lease("leased", B, "run")
    with lease:
        assert lease.acquire()
        report = collect_garbage(store, dry=False)
    assert [item.path.parent.name for item in report.garbage] == ["published", "stale"]
    assert not store.work("stale", A).exists()
    assert store.work("leased", B).exists()
    assert store.work("resumable", C).exists()


def test_artifacts_of_a_running_run_are_kept(store: Store) -> None:
    made = publish(store, "clean", A)
    plan(store, RUNS[0], ("clean", A))
    plan(store, RUNS[1])
    lease = store.lease("run", RUNS[0], "driver")
    with lease:
        assert lease.acquire()
        assert collect_garbage(store, keep=1).garbage == []
    assert [item.path for item in collect_garbage(store, keep=1).garbage] == [made.path]


def test_quarantine_and_interrupted_deletions_are_removed(store: Store) -> None:
    made = publish(store, "clean", A)
    store.quarantine(made, "bits")
    trash = store.root / "tmp" / "half"
    trash.mkdir(parents=True)
    report = collect_garbage(store, dry=False)
    assert [item.why for item in report.garbage] == [
        "damaged",
        "its deletion was interrupted",
    ]
    assert not trash.exists()
    assert not list((store.root / "quarantine").rglob("*.json"))
    assert store.corruption_reason("clean", A) == ""
    assert collect_garbage(store).garbage == []


def test_caches_are_removed(store: Store) -> None:
    for name in ("judged", "verified"):
        (store.root / "cache" / name / "a").mkdir(parents=True)
        (store.root / "cache" / name / "a" / "b").write_text("four")
    (item,) = collect_garbage(store, keep=5, dry=True).garbage
    assert (item.path.name, item.size, item.why) == ("judged", 4, "stages can make it again")
    collect_garbage(store, keep=5, dry=False)
    assert not list((store.root / "cache").iterdir())


def test_records_of_what_is_gone_are_removed(store: Store) -> None:
    kept, gone, held = (publish(store, uses, A) for uses in ("kept", "gone", "held"))
    plan(store, RUNS[0], ("kept", A))
    for artifact in (kept, gone, held):
        store.ensure_verified(artifact)
    store.quarantine(publish(store, "kept", A), "bits")
    (store.root / "quarantine" / "kept" / "stray").write_text("")
    leases = [store.lease(uses, A, "run") for uses in ("kept", "gone", "held")]
    with leases[2]:
        assert all(lease.acquire() for lease in leases)
        for lease in leases[:2]:
            lease.release()
        collect_garbage(store)
        assert all(lease.folder.exists() for lease in leases)
        collect_garbage(store, dry=False)
        assert [lease.folder.exists() for lease in leases] == [True, False, True]
        left = [path.name for path in (store.root / "quarantine" / "kept").iterdir()]
        assert left == ["stray"]
        assert leases[2].is_held()
    assert not (store.root / "cache" / "verified").exists()
    assert store.ensure_verified(kept) is kept


def test_a_path_that_is_gone_has_no_size(store: Store, tmp_path: Path) -> None:
    (tmp_path / "left").mkdir()
    assert Garbage.at(tmp_path / "gone", "") == Garbage(tmp_path / "gone", 0, "")


def test_damaged_artifacts_and_concurrent_deletions(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = publish(store, "clean", A)
    (made.path / MANIFEST).unlink()
    plan(store, RUNS[0], ("clean", A))
    assert collect_garbage(store).garbage == []  # a damaged artifact of a kept run is evidence
    other = publish(store, "pack", B)
    monkeypatch.setattr(
        garbage_collection, "move_folder", lambda *_: (_ for _ in ()).throw(FileNotFoundError())
    )
    collect_garbage(store, dry=False)
    assert not other.path.exists()
