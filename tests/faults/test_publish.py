"""Publishing under faults: the n-th file operation fails, or kills, for all n; bits flip; two race.

After each the store is sound, and doing the same work again gives the same digest.
"""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty_disk import READS, WRITES, Operation, fault_at
from memory_folders import Folders, folders_in_memory
from toy_runs import until

from launch.garbage_collection import collect_garbage
from pipeline.atomic_io import append_line, write_atomic
from pipeline.context import Context
from pipeline.errors import CorruptArtifact, Failure
from pipeline.execution.run import Run
from pipeline.storage.artifact import MANIFEST, Artifact, list_files, publish
from pipeline.storage.store import PublishRequest, Store

pytestmark = pytest.mark.faults

FP = "f" * 16
fork = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def tmp_path_factory() -> Iterator[Folders]:
    with folders_in_memory() as folders:
        yield folders


@pytest.fixture
def tmp_path(tmp_path_factory: Folders) -> Path:
    return tmp_path_factory.mktemp("faults")


class Died(BaseException):
    """Not an OSError: nothing may handle it, as nothing handles a power cut."""


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def broken() -> None:
    raise OSError(errno.EIO, "Input/output error")


def stale() -> None:
    raise OSError(errno.ESTALE, "Stale file handle")


def refused() -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


def cut() -> None:
    raise Died


def die() -> None:
    os._exit(137)


def work(store: Store) -> None:
    """What a stage does, again after each kill: the same bytes in the same folder."""
    folder = store.work("toy", FP)
    context = Context(folder, folder / "log", folder / "cancel", store.root / "cache")
    (context.out / "deep").mkdir(exist_ok=True)
    (context.out / "a.bin").write_bytes(bytes(range(256)))
    (context.out / "deep" / "b.txt").write_text("hello")
    context.metrics(1, {"loss": 1.0})
    context.result(loss=1.0)


def commit(store: Store) -> Artifact:
    return store.publish(
        PublishRequest(
            "toy", FP, kind="Toy", version=1, payload={}, inputs={}, run={"id": "r"}, seconds=1
        )
    )


def recover(store: Store) -> Artifact:
    """What the next run does: take what was published, or make it again."""
    found = store.find_or_quarantine("toy", FP)
    if found is None:
        work(store)
        found = commit(store)
    return store.ensure_verified(found)


@pytest.fixture(scope="module")
def digest(tmp_path_factory: Folders) -> str:
    """Of an undisturbed run."""
    return recover(Store(tmp_path_factory.mktemp("undisturbed"))).digest


def is_sound(store: Store, digest: str) -> None:
    """Whatever is there is whole; nothing was put aside; the next run ends as any other."""
    assert all(store.verify(folder) == [] for folder in store.folders())
    assert recover(store).digest == digest
    assert len(list(store.artifacts())) == 1
    assert not (store.root / "quarantine").exists()
    collect_garbage(store, dry=False)
    assert not list(store.root.glob("work/*/*"))


@pytest.mark.parametrize(
    ("fail", "operations"), [(full, WRITES), (cut, WRITES), (broken, READS), (cut, READS)]
)
def test_the_nth_operation_fails_for_all_n(
    tmp_path: Path, digest: str, fail: Callable[[], None], operations: list[Operation]
) -> None:
    for nth in itertools.count(1):
        store = Store(tmp_path / str(nth))
        work(store)
        error: BaseException | None = None
        with fault_at(nth, fail, operations) as done:
            try:
                commit(store)
            except (Failure, Died) as caught:
                error = caught
        if fail is full and isinstance(error, Failure):
            assert "is full" in error.message
            assert "headwater gc" in error.remedy
        is_sound(store, digest)
        if len(done) < nth:
            assert error is None
            assert nth > 40
            return


def test_a_kill_at_the_nth_operation_for_all_n(tmp_path: Path, digest: str) -> None:
    def killed(store: Store, nth: int) -> None:
        with fault_at(nth, die):
            commit(store)
        os._exit(0)

    codes = []
    for nth in itertools.count(1):
        store = Store(tmp_path / str(nth))
        work(store)
        child = fork.Process(target=killed, args=(store, nth))
        child.start()
        child.join()
        codes.append(child.exitcode)
        is_sound(store, digest)
        if codes[-1] == 0:
            break
    assert set(codes[:-1]) == {137}
    assert len(codes) > 40


def test_bytes_and_names_are_on_disk_before_the_commit(tmp_path: Path) -> None:
    """The order that a power cut cannot turn into a torn artifact."""
    store = Store(tmp_path)
    work(store)
    synced: list[Path] = []
    true_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        true_fsync(descriptor)

    at_commit: list[Path] = []
    true_rename = os.rename

    def rename(source: Path, target: Path) -> None:
        at_commit.extend(synced)
        true_rename(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "rename", rename)
        made = commit(store)
    out = store.work("toy", FP) / "out"
    for file in made.manifest["files"]:
        assert out / file["path"] in at_commit
    for folder in (out, out / "deep", out / "observed"):
        assert folder in at_commit
    manifest = [path for path in at_commit if MANIFEST in path.name]
    assert len(manifest) == 1
    assert at_commit.index(manifest[0]) > max(
        at_commit.index(out / file["path"]) for file in made.manifest["files"]
    )
    assert made.path.parent in synced[len(at_commit) :]


def test_a_flipped_bit_in_any_file_is_found_before_use(tmp_path: Path, digest: str) -> None:
    store = Store(tmp_path)
    for name in [*list_files(recover(store).path), MANIFEST]:
        for share in (0.0, 0.5, 1.0):
            made = recover(store)
            path = made.path / name
            flipped = bytearray(path.read_bytes())
            place = int(share * (len(flipped) - 1))
            flipped[place] ^= 1 << place % 8
            times = path.stat()
            path.write_bytes(flipped)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # disks leave no trace
            with pytest.raises(CorruptArtifact):
                store.ensure_verified(made, run="the next")
            assert name in store.corruption_reason("toy", FP)
            assert recover(store).digest == digest


def test_a_cut_file_is_found_at_opening(tmp_path: Path, digest: str) -> None:
    store = Store(tmp_path)
    for name in list_files(recover(store).path):
        path = recover(store).path / name
        os.truncate(path, path.stat().st_size - 1)
        assert store.find_or_quarantine("toy", FP) is None
        assert recover(store).digest == digest


def shelf(root: Path) -> Store:
    """A store in which nothing is garbage: each thing is kept for another reason."""
    store = Store(root)
    root.mkdir()
    origin = made(store, "origin")
    made(store, "planned", origin)
    made(store, "promoted")
    run = root / "runs" / "20260101-0000-able-bear"
    run.mkdir(parents=True)
    stage = {"uses": "planned", "fingerprint": FP}
    (run / "plan.json").write_text(json.dumps({"stages": [stage]}))
    log = root / "registry" / "model" / "promotions.jsonl"
    log.parent.mkdir(parents=True)
    append_line(log, json.dumps({"alias": "champion", "fingerprint": "promoted"}))
    store.work("leased", FP).joinpath("out").mkdir(parents=True)
    return store


def made(store: Store, uses: str, *inputs: Artifact) -> Artifact:
    out = store.work(uses, uses if uses == "promoted" else FP) / "out"
    out.mkdir(parents=True)
    (out / "data").write_text(uses)
    return store.publish(
        PublishRequest(
            uses,
            out.parent.name,
            kind="Toy",
            version=1,
            payload={},
            inputs={"from": inputs},
            run={"id": "r"},
            seconds=1,
        )
    )


def use(store: Store) -> None:
    for artifact in store.artifacts():
        found = store.find_or_quarantine(artifact.uses, artifact.fingerprint)
        assert found
        store.ensure_verified(found, run="r")


@pytest.mark.parametrize("fail", [broken, stale, refused])
@pytest.mark.parametrize(
    "look", [use, lambda store: collect_garbage(store, dry=False)], ids=["use", "gc"]
)
def test_a_disk_that_cannot_be_read_loses_nothing(
    tmp_path: Path, fail: Callable[[], None], look: Callable[[Store], object]
) -> None:
    store = shelf(tmp_path / "store")
    with store.lease("leased", FP, owner="somebody") as lease:
        assert lease.acquire()
        lease._stop.set()  # its heartbeat's operations are not those that are counted
        until((lease.folder / "00000001.beat").exists)
        sound = {artifact.path: artifact.digest for artifact in store.artifacts()}
        assert len(sound) == 3
        for nth in itertools.count(1):
            failed = False
            with fault_at(nth, fail, READS) as done:
                try:
                    look(store)
                except Failure as failure:
                    failed = True
                    assert failure.remedy
            assert {a.path: a.digest for a in store.artifacts()} == sound, done[-1]
            assert store.work("leased", FP).exists(), done[-1]
            assert not (store.root / "quarantine").exists(), done[-1]
            if len(done) < nth:
                assert not failed
                assert nth > 30
                return


def test_of_two_writers_exactly_one_publishes(tmp_path: Path) -> None:
    rounds = 25
    barrier = fork.Barrier(2)
    results = fork.Queue()

    def write(name: str) -> None:
        for number in range(rounds):
            staged = tmp_path / f"{name}-{number}"
            staged.mkdir()
            (staged / "who").write_text(name)
            barrier.wait()
            try:
                publish(staged, tmp_path / "target" / str(number), {"who": name})
                results.put((number, name))
            except FileExistsError:
                results.put((number, None))

    writers = [fork.Process(target=write, args=(name,)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    outcomes = [results.get(timeout=60) for _ in range(2 * rounds)]
    for writer in writers:
        writer.join()
    winners = {number: name for number, name in outcomes if name}
    assert len(winners) == sum(1 for _, name in outcomes if name) == rounds
    for number, name in winners.items():
        made = Artifact.open(tmp_path / "target" / str(number))
        assert made.verify() == []
        assert (made.path / "who").read_text() == made.manifest["who"] == name


def test_a_file_is_replaced_wholly_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for fail in (full, cut):
        for nth in itertools.count(1):
            path.write_text("old")
            failed = False
            with fault_at(nth, fail) as done:
                try:
                    write_atomic(path, "new")
                except (Failure, Died):
                    failed = True
            assert path.read_text() in ("old", "new")
            assert failed or path.read_text() == "new"
            if len(done) < nth:
                break
    assert nth > 4


def test_a_journal_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    for fail, nth in itertools.product((full, cut), range(1, 8)):
        run = Run(Store(tmp_path / f"{fail.__name__}-{nth}"), "r")
        run.folder.mkdir(parents=True)
        run.append("note", message="one")
        failed = False
        with fault_at(nth, fail):
            try:
                run.append("note", message="two")
            except (Failure, Died):
                failed = True
        told = [event["message"] for event in run.events()]
        assert told == ["one", "two"] or (failed and told == ["one"])
        run.append("note", message="three")
        assert [event["seq"] for event in run.events()] == list(range(1, len(told) + 2))


def test_a_disk_that_is_full_for_all_is_named(tmp_path: Path) -> None:
    """A real limit, not an injected one: files of this process may not grow beyond 4 KiB."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with pytest.raises(Failure, match="is full"):
            write_atomic(tmp_path / "big", b"x" * 8192)
        with pytest.raises(Failure, match="is full"):
            append_line(tmp_path / "log", "x" * 8192)
        assert (tmp_path / "log").read_text() == "one\n"
        os._exit(0)

    append_line(tmp_path / "log", "one")
    child = fork.Process(target=limited)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert not (tmp_path / "big").exists()
