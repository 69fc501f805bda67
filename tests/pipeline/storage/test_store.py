"""The store: finding, verifying, quarantining and publishing artifacts."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from faulty_disk import out_of_descriptors
from store_cases import A, B, C, damage, publish, work

from launch.garbage_collection import collect_garbage
from pipeline.errors import CorruptArtifact, Failure, LeaseLost, NotFound, UserError
from pipeline.storage import store as module
from pipeline.storage.artifact import MANIFEST, Artifact
from pipeline.storage.store import PublishRequest, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# --- publishing --------------------------------------------------------------------------------


def test_what_is_published_is_found_with_its_facts(store: Store) -> None:
    assert store.find("clean", A) is None
    made = publish(store, "clean", A)
    assert store.find("clean", A) == made
    assert made.path == store.root / "artifacts" / "clean" / A
    assert made.metrics == {"loss": 2.0}
    assert made.manifest["code"] == {}
    assert made.manifest["payload"] == {"stage": "clean"}
    assert made.manifest["run"]["id"] == "r"
    assert (made.path / "observed" / "metrics.jsonl").read_text().startswith('{"step": 1')
    assert not store.work("clean", A).exists()


def test_inputs_are_named_by_content_and_place(store: Store) -> None:
    first = publish(store, "clean", A)
    made = publish(store, "pack", B, first)
    assert made.manifest["inputs"] == {
        "texts": [
            {
                "uses": "clean",
                "fingerprint": A,
                "digest": first.digest,
                "path": f"artifacts/clean/{A}",
            }
        ]
    }
    work(store, "one", C)
    alone = store.publish(
        PublishRequest(
            "one", C, kind="", version=1, payload={}, inputs={"x": first}, run={}, seconds=0
        )
    )
    assert alone.manifest["inputs"]["x"][0]["digest"] == first.digest


def test_a_rerun_is_the_next_generation_and_the_old_one_stays(store: Store) -> None:
    old = publish(store, "clean", A)
    work(store, "clean", A, "other")
    new = publish(store, "clean", A)
    assert new.path.name == f"{A}.2"
    assert store.find("clean", A) == new
    assert store.latest_readable("clean", A) == new
    assert store.latest_readable("clean", A, old.digest) == old
    assert store.latest_readable("clean", A, "none") is None
    assert old.verify() == []
    assert publish(store, "clean", A).path.name == f"{A}.3"


def test_a_kill_between_gathering_and_commit_changes_nothing(store: Store) -> None:
    context = work(store, "clean", A)
    stale = context.out / "observed" / "old.json"
    stale.parent.mkdir()
    stale.write_text("from the attempt before")
    (context.observed / "folder").mkdir()
    made = publish(store, "clean", A)
    assert not (made.path / "observed" / "old.json").exists()
    assert made.verify() == []


def test_nothing_written_is_nothing_published(store: Store) -> None:
    with pytest.raises(Failure, match="wrote nothing"):
        store.publish(
            PublishRequest("x", A, kind="", version=1, payload={}, inputs={}, run={}, seconds=0)
        )
    store.work("x", A).joinpath("out").mkdir(parents=True)
    with pytest.raises(Failure, match="wrote nothing"):
        publish(store, "x", A)


def test_without_observations_there_are_no_metrics(store: Store) -> None:
    out = store.work("x", A) / "out"
    out.mkdir(parents=True)
    (out / "data").write_text("1")
    assert publish(store, "x", A).metrics == {}


def test_a_lost_lease_stops_the_commit(store: Store) -> None:
    lease = store.lease("clean", A, "run")
    with pytest.raises(LeaseLost):
        publish(store, "clean", A, lease=lease)
    assert store.find("clean", A) is None
    with lease:
        assert lease.acquire()
        assert publish(store, "clean", A, lease=lease).verify() == []


def test_the_second_publisher_loses_the_lease(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, "clean", A)
    monkeypatch.setattr(Store, "generations", lambda *_: [])
    with pytest.raises(LeaseLost, match="published it first"):
        publish(store, "clean", A)


# --- trust -------------------------------------------------------------------------------------


def test_an_artifact_with_a_missing_file_is_quarantined(store: Store) -> None:
    made = publish(store, "clean", A)
    assert store.corruption_reason("clean", A) == ""
    (made.path / "data.txt").unlink()
    assert store.find_or_quarantine("clean", A) is None
    assert not made.path.exists()
    assert store.corruption_reason("clean", A) == "data.txt: missing"
    again = publish(store, "clean", A)
    (again.path / MANIFEST).write_text("{}")
    assert store.latest_readable("clean", A) is None
    assert store.find_or_quarantine("clean", A) is None
    assert "manifest.json" in store.corruption_reason("clean", A)
    assert len(list((store.root / "quarantine" / "clean").glob("*.json"))) == 2


def test_find_moves_nothing(store: Store) -> None:
    made = publish(store, "clean", A)
    (made.path / "data.txt").unlink()
    assert store.find("clean", A) is None
    assert store.corruption_reason("clean", A) == "data.txt: missing"
    assert made.path.exists()
    assert not (store.root / "quarantine").exists()
    with pytest.raises(NotFound, match=rf"clean/{A} is damaged: data.txt: missing"):
        store.by_fingerprint(A)
    assert made.path.exists()


def test_a_disk_that_refuses_for_a_while_costs_nothing(store: Store) -> None:
    made = publish(store, "clean", A)
    looks = (
        lambda: store.find_or_quarantine("clean", A),
        lambda: store.latest_readable("clean", A),
        lambda: store.ensure_verified(made),
        lambda: collect_garbage(store, dry=False),
        lambda: store.by_fingerprint(A),
    )
    for look in looks:
        with out_of_descriptors(), pytest.raises(Failure, match="Too many open files"):
            look()
    assert store.find("clean", A) == made
    assert store.verify(made) == []


def test_each_quarantined_generation_keeps_its_reason(store: Store) -> None:
    publish(store, "clean", A)
    for reason in ("second", "third"):
        store.quarantine(publish(store, "clean", A).path, reason)
        publish(store, "clean", A)
    notes = (store.root / "quarantine" / "clean").glob("*.json")
    assert sorted(json.loads(note.read_text())["reason"] for note in notes) == ["second", "third"]


def test_an_older_generation_stands_in_for_a_damaged_one(store: Store) -> None:
    old = publish(store, "clean", A)
    new = publish(store, "clean", A)
    (new.path / "data.txt").write_text("short")
    (new.path / "data.txt").write_text("")
    assert store.find("clean", A) == old


def test_an_artifact_under_another_name_is_damaged(store: Store) -> None:
    made = publish(store, "clean", A)
    made.path.rename(made.path.with_name(B))
    assert store.find_or_quarantine("clean", B) is None
    assert store.corruption_reason("clean", B) == f"holds clean/{A}"


def test_bytes_are_hashed_once_for_a_run_on_a_machine(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = publish(store, "clean", A)
    hashed: list[str] = []
    monkeypatch.setattr(Artifact, "verify", lambda self: hashed.append(self.digest) or [])

    def times_of(*uses: str) -> int:
        hashed.clear()
        for run in uses:
            assert store.ensure_verified(made, run) is made
        return len(hashed)

    assert times_of("one", "one") == 1
    assert times_of("one", "two", "", "") == 2
    os.utime(made.path / "data.txt", (1, 1))
    assert times_of("one", "one") == 1
    monkeypatch.setattr(module.platform, "node", lambda: "another")
    assert times_of("one") == 1
    monkeypatch.setattr(module, "machine_id", lambda: "another start of it")
    assert times_of("one", "") == 2


def test_files_that_change_meanwhile_are_hashed_each_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = publish(store, "clean", A)

    def vanish(self: Artifact) -> str:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    with monkeypatch.context() as patch:
        patch.setattr(Artifact, "change_token", vanish)
        assert store.ensure_verified(made) is made
    assert not (store.root / "cache" / "verified").exists()


def test_a_bit_that_flipped_without_a_trace_is_found_by_the_next_reader(store: Store) -> None:
    made = publish(store, "clean", A)
    times = (made.path / "data.txt").stat()
    damage(made)
    os.utime(made.path / "data.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(CorruptArtifact, match=r"data.txt: its bytes changed"):
        store.ensure_verified(made, "the run that made it")


def test_a_flipped_bit_is_found_before_use(store: Store) -> None:
    made = publish(store, "clean", A)
    damage(made)
    assert store.find("clean", A) == made  # sizes alone cannot tell
    with pytest.raises(CorruptArtifact, match=r"data.txt: its bytes changed") as caught:
        store.ensure_verified(made)
    assert caught.value.where == f"clean/{A}"
    assert store.find("clean", A) is None
    with pytest.raises(CorruptArtifact, match="missing or unreadable"):
        store.ensure_verified(made)


def test_verify_takes_folders_too(store: Store) -> None:
    made = publish(store, "clean", A)
    assert store.verify(made.path) == store.verify(made) == []
    damage(made)
    assert store.verify(made) == ["data.txt: its bytes changed"]


def test_a_store_that_cannot_remember_still_verifies(store: Store) -> None:
    (store.root / "cache").parent.mkdir(parents=True)
    work(store, "clean", A)
    (store.root / "cache").rmdir()
    (store.root / "cache").write_text("in the way")
    made = publish(store, "clean", A)
    assert store.ensure_verified(made) is made


def test_two_readers_may_quarantine_the_same_artifact(store: Store) -> None:
    made = publish(store, "clean", A)
    store.quarantine(made, "first")
    store.quarantine(made, "second")
    assert store.corruption_reason("clean", A) == "first"


# --- looking up --------------------------------------------------------------------------------


def test_artifacts_are_found_by_the_beginning_of_their_fingerprint(store: Store) -> None:
    made = publish(store, "clean", A)
    new = publish(store, "clean", A)
    other = publish(store, "pack", "ab" + "0" * 14)
    assert store.by_fingerprint("aaa") == new
    assert store.by_fingerprint(f"clean/{A}") == new
    assert store.by_fingerprint(f"{A}.2") == new
    assert store.by_fingerprint("pack/ab") == other
    with pytest.raises(NotFound, match="several artifacts begin with 'a': clean/aaa"):
        store.by_fingerprint("a")
    for prefix in ("f", ""):
        with pytest.raises(NotFound):
            store.by_fingerprint(prefix)
    assert [artifact.path for artifact in store.artifacts()] == [made.path, new.path, other.path]
    (other.path / MANIFEST).unlink()
    assert len(list(store.artifacts())) == 2
    assert len(list(store.folders())) == 3
    with pytest.raises(NotFound, match="is damaged: manifest"):
        store.by_fingerprint("ab")


def test_an_exact_older_generation_can_be_named(store: Store) -> None:
    publish(store, "clean", A)
    second = publish(store, "clean", A)
    publish(store, "clean", A)
    assert store.by_fingerprint(f"clean/{A}.2") == second


def test_opening_creates_nothing_and_refuses_what_is_no_folder(tmp_path: Path) -> None:
    store = Store(tmp_path / "new")
    assert (list(store.artifacts()), store.find("x", A), collect_garbage(store).garbage) == (
        [],
        None,
        [],
    )
    assert not store.root.exists()
    assert repr(store) == f"Store({str(tmp_path / 'new')!r})"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        Store(tmp_path / "file")
    with pytest.raises(UserError, match="not a folder") as caught:
        Store("s3://bucket/store")
    assert "mount" in caught.value.remedy


@pytest.mark.parametrize("name", ["../x", "x/y", ""])
def test_names_cannot_leave_the_store(store: Store, name: str) -> None:
    for call in (store.find, store.work, lambda *a: store.lease(*a, "me")):
        with pytest.raises(UserError):
            call(name, A)
        with pytest.raises(UserError):
            call("clean", name)
