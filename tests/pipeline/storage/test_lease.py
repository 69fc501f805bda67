"""Leases: one holder, tokens that grow, takeovers that need no clock of another."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_disk import out_of_descriptors

from pipeline.errors import Failure, LeaseLost
from pipeline.storage import lease as module
from pipeline.storage.lease import Lease, machine_id

fork = multiprocessing.get_context("fork")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def claim(folder: Path, owner: str = "me", **times: float) -> Lease:
    return Lease(folder, owner, **{"heartbeat": 0.02, "expiry": 30.0, **times})


def elsewhere(folder: Path, epoch: int = 1) -> Path:
    """Write a holder on another machine, whose pid has no meaning here."""
    folder.mkdir(parents=True, exist_ok=True)
    holder = {"owner": "far", "nonce": "n", "node": "other", "host": "other", "pid": 1, "born": ""}
    (folder / f"{epoch:08d}.json").write_text(json.dumps(holder))
    beat = folder / f"{epoch:08d}.beat"
    beat.write_text("0")
    return beat


def test_one_holds_and_the_next_gets_a_higher_token(tmp_path: Path) -> None:
    first, second = claim(tmp_path / "l", "first"), claim(tmp_path / "l", "second")
    assert not first.is_held()
    assert first.holder() is None
    assert not first.alive()
    with first:
        assert first.acquire()
        assert first.is_held()
        assert second.alive()
        assert second.holder()["owner"] == "first"  # type: ignore[index]
        assert not second.acquire()
        assert not second.acquire(0.05)
        with pytest.raises(LeaseLost, match="belongs to first"):
            second.check()
    assert not second.alive()
    assert second.acquire(timeout=None)
    assert second.epoch == 2
    assert not first.is_held()
    second.check()
    second.release()
    second.release()
    with pytest.raises(LeaseLost, match="belongs to no process"):
        second.check()


def test_the_counter_moves_while_it_is_held(tmp_path: Path) -> None:
    held = claim(tmp_path)
    assert held.acquire()
    wait_for(lambda: held._text(1, "beat") > f"{3:020d}")
    held.release()


def test_a_heartbeat_whose_bytes_are_damaged_is_one_like_any_other(tmp_path: Path) -> None:
    elsewhere(tmp_path).write_bytes(b"000\xb0")
    waiter = claim(tmp_path, expiry=0.1)
    assert not waiter.acquire()
    assert waiter.acquire(20) and waiter.epoch == 2
    waiter.release()


def test_a_holder_that_stands_still_is_replaced_and_notices(tmp_path: Path) -> None:
    slow = claim(tmp_path, "slow", heartbeat=3600)
    fast = claim(tmp_path, "fast", expiry=0.1)
    assert slow.acquire()
    assert fast.acquire(20)
    assert fast.epoch == 2
    assert not (tmp_path / "00000001.json").exists()
    with pytest.raises(LeaseLost, match="belongs to fast"):
        slow.check()
    slow.release()
    assert fast.is_held()
    fast.release()


def test_a_lost_lease_is_noticed_by_the_heartbeat(tmp_path: Path) -> None:
    held = claim(tmp_path)
    assert held.acquire()
    elsewhere(tmp_path, epoch=2)
    assert held.lost.wait(20)
    assert not held.is_held()


def test_a_moving_counter_is_never_taken_over(tmp_path: Path) -> None:
    beat = elsewhere(tmp_path)
    waiter = claim(tmp_path, expiry=0.4)
    stop = threading.Event()

    def step() -> None:
        count = 0
        while not stop.wait(0.02):
            count += 1
            beat.write_text(str(count))

    thread = threading.Thread(target=step)
    thread.start()
    try:
        assert not waiter.acquire(1.2)
    finally:
        stop.set()
        thread.join()
    assert waiter.acquire(20)
    waiter.release()


def test_what_was_watched_is_remembered_between_attempts(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    waiter = claim(tmp_path, expiry=0.1)
    wait_for(waiter.acquire)
    waiter.release()


def test_a_holder_that_died_here_is_replaced_at_once(tmp_path: Path) -> None:
    child = fork.Process(target=lambda: (claim(tmp_path, "child").acquire(), os._exit(9)))
    child.start()
    waiter = claim(tmp_path, expiry=3600)
    wait_for(lambda: waiter.holder() is not None)
    wait_for(lambda: not waiter.alive())  # even while it is a zombie that nobody waited for
    assert waiter.acquire()
    child.join()
    assert child.exitcode == 9
    assert module.process_start_time(child.pid or 0) == ""
    waiter.release()


def test_a_pid_that_was_given_to_another_process_is_not_the_holder(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    path = tmp_path / "00000001.json"
    stranger = {
        **json.loads(path.read_text()),
        "node": machine_id(),
        "pid": os.getpid(),
        "born": "1",
    }
    path.write_text(json.dumps(stranger))
    waiter = claim(tmp_path, expiry=3600)
    assert waiter.acquire()
    waiter.release()


def test_of_many_processes_exactly_one_wins(tmp_path: Path) -> None:
    start = fork.Barrier(4)
    winners = fork.Queue()

    def contend(name: str) -> None:
        for round_ in range(10):
            mine = claim(tmp_path / str(round_), name)
            start.wait()
            winners.put((round_, name, mine.acquire()))
            start.wait()

    contenders = [fork.Process(target=contend, args=(f"p{k}",)) for k in range(4)]
    for contender in contenders:
        contender.start()
    results = [winners.get(timeout=30) for _ in range(40)]
    for contender in contenders:
        contender.join()
    won = [round_ for round_, _, success in results if success]
    assert sorted(won) == list(range(10))


def test_the_far_holder_seems_alive_by_the_age_of_its_heartbeat(tmp_path: Path) -> None:
    beat = elsewhere(tmp_path)
    reader = claim(tmp_path)
    assert reader.alive()
    os.utime(beat, (1, 1))
    assert not reader.alive()
    beat.unlink()
    assert reader.alive()
    assert not list(tmp_path.glob("probe-*"))


def test_a_reader_that_may_not_write_uses_its_own_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "touch", refuse)
    assert claim(tmp_path).alive()


def test_an_epoch_that_is_being_written_counts_as_held(tmp_path: Path) -> None:
    (tmp_path / "00000003.json").write_text("")
    waiter = claim(tmp_path)
    assert not waiter.acquire()
    assert waiter.holder() == {}
    patient = claim(tmp_path, expiry=0.05)
    assert patient.acquire(20)
    assert patient.epoch == 4
    patient.release()


def test_a_listing_that_missed_the_newest_epoch_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(tmp_path, epoch=7)
    mine = claim(tmp_path)
    looks = iter([0])
    monkeypatch.setattr(mine, "_newest_epoch", lambda: next(looks, 7))
    assert not mine.acquire()
    assert not mine.is_held()


def test_the_same_epoch_cannot_be_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(tmp_path)
    mine = claim(tmp_path)
    monkeypatch.setattr(mine, "_newest_epoch", lambda: 0)
    assert not mine.acquire()
    assert claim(tmp_path).holder()["owner"] == "far"  # type: ignore[index]


def test_a_full_disk_leaves_no_claim_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    mine = claim(tmp_path / "l")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(Failure, match="is full"):
            mine.acquire()
    assert list((tmp_path / "l").iterdir()) == []
    assert not mine.is_held()


def test_without_a_boot_id_no_process_counts_as_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        raise OSError

    machine_id.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(os, "readlink", refuse)
        assert machine_id() == ""
        mine = claim(tmp_path)
        assert mine.acquire()
        assert mine.alive()
        mine.release()
    machine_id.cache_clear()
    assert machine_id() != ""
    assert module._is_dead({"node": "", "pid": 1, "born": "x"}) is False


def test_a_disk_that_cannot_be_read_for_a_while_is_a_missed_beat(tmp_path: Path) -> None:
    held = claim(tmp_path)
    assert held.acquire()
    wait_for(lambda: held._text(1, "beat") != "")
    with out_of_descriptors():
        for question in (held.is_held, held.check, held.holder, held.alive):
            with pytest.raises(Failure, match="cannot read: Too many open files"):
                question()
        time.sleep(0.1)  # several beats
    beaten = held._text(1, "beat")
    assert not held.lost.is_set()
    assert held.is_held()
    wait_for(lambda: held._text(1, "beat") > beaten)
    held.release()


def test_a_holder_that_cannot_be_seen_is_not_taken_for_one_that_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(tmp_path)
    waiter = claim(tmp_path, expiry=0.1)

    def broken(epoch: int, suffix: str) -> str:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(waiter, "_text", broken)
        assert not waiter.acquire(0.3)
    assert not waiter.acquire()  # the watch begins anew
    assert waiter.acquire(20)
    waiter.release()


def test_an_unreadable_process_does_not_count_as_dead() -> None:
    assert module.process_start_time(os.getpid())
    with out_of_descriptors(), pytest.raises(OSError, match="Too many open files"):
        module.process_start_time(os.getpid())


def test_a_folder_that_is_removed_at_this_very_moment_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = claim(tmp_path / "l")
    create = mine._create

    def too_late(path: Path, content: bytes) -> None:
        path.parent.rmdir()
        monkeypatch.setattr(mine, "_create", create)
        create(path, content)

    monkeypatch.setattr(mine, "_create", too_late)
    assert not mine.acquire()
    assert mine.acquire()
    mine.release()


def test_no_descriptor_reaches_a_child(tmp_path: Path) -> None:
    mine = claim(tmp_path, heartbeat=0.001)
    assert mine.acquire()
    command = ["ls", "-l", "/proc/self/fd"]
    for _ in range(5):
        listed = subprocess.run(command, close_fds=False, capture_output=True, text=True)
        assert str(tmp_path) not in listed.stdout
    mine.release()
