"""The disk, real where it can be had, and made to refuse where it cannot."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
from pathlib import Path

import pytest
from faulty_disk import out_of_descriptors
from hypothesis import given
from hypothesis import strategies as st

from pipeline import atomic_io as module
from pipeline.atomic_io import (
    append_line,
    complete_lines_size,
    format_bytes,
    list_folder,
    list_subfolders,
    make_folder,
    move_folder,
    read_json,
    read_lines,
    write_atomic,
)
from pipeline.errors import Failure

fork = multiprocessing.get_context("fork")


def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_atomic(path, "ä")
    write_atomic(path, b"\xff", durable=False)
    assert path.read_bytes() == b"\xff"
    assert list(tmp_path.iterdir()) == [path]


def test_append_line_cuts_off_a_torn_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert append_line(log, "one") == 4
    with log.open("ab") as file:
        file.write(b"tor" * 40000)  # longer than one look back
    assert append_line(log, "two") == 8
    assert log.read_text() == "one\ntwo\n"


def test_of_several_processes_that_append_none_loses_a_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    together = fork.Barrier(4)

    def write(name: int) -> None:
        together.wait()
        for _ in range(100):
            append_line(log, lambda: f"{len(read_lines(log))} {name} {'x' * 50 * name}")

    writers = [fork.Process(target=write, args=(name,)) for name in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = [line.split() for line in log.read_text().splitlines()]
    assert [int(line[0]) for line in lines] == list(range(400))
    assert sorted(int(line[1]) for line in lines) == sorted([0, 1, 2, 3] * 100)
    assert all(len("".join(line[2:])) == 50 * int(line[1]) for line in lines)


def test_where_files_cannot_be_locked_lines_are_appended_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code, passes in ((errno.ENOLCK, True), (errno.EIO, False)):

        def refuse(*_: object, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", refuse)
        if passes:
            append_line(tmp_path / "log", "one")
        else:
            with pytest.raises(Failure, match="Input/output error"):
                append_line(tmp_path / "log", "two")
    assert (tmp_path / "log").read_text() == "one\n"


@given(content=st.binary(max_size=200))
def test_whole_lines_are_those_that_end(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("lines") / "log"
    assert complete_lines_size(path) == 0
    path.write_bytes(content)
    assert complete_lines_size(path) == content.rfind(b"\n") + 1


def test_move_tells_a_taken_place_from_other_trouble(tmp_path: Path) -> None:
    source, taken = tmp_path / "source", tmp_path / "taken"
    for folder in (source, taken):
        folder.mkdir()
        (folder / "a").write_text(folder.name)
    for moved, place in ((source, taken), (source, taken / "a"), (source / "a", taken / "a")):
        with pytest.raises(FileExistsError):
            move_folder(moved, place)
    assert (taken / "a").read_text() == "taken"


def test_the_second_move_to_a_target_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("source", "taken"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    monkeypatch.setattr(os.path, "lexists", lambda path: False)  # it looked a moment before
    with pytest.raises(FileExistsError):
        move_folder(tmp_path / "source", tmp_path / "taken")
    with pytest.raises(FileNotFoundError):
        move_folder(tmp_path / "nothing", tmp_path / "there")
    with pytest.raises(FileNotFoundError):
        move_folder(tmp_path / "nothing", tmp_path / "there")


def test_a_full_disk_is_named_with_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "x"
    path.write_text("old\n")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Failure, match=r"the disk at / ?.* is full: 2.0 KiB needed, .* free") as e:
        write_atomic(path, b"x" * 2048)
    assert "headwater gc" in e.value.remedy
    with pytest.raises(Failure, match="is full"):
        append_line(path, "new")
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_refuses_is_a_failure_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match="Not a directory"):
        write_atomic(tmp_path / "file" / "x", "y")
    with pytest.raises(Failure) as caught, module.disk_errors(tmp_path):
        raise OSError("odd")
    assert caught.value.where == str(tmp_path)
    assert "needed" not in module.disk_full_error(tmp_path / "gone" / "x").message


def test_a_folder_that_cannot_be_made_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "in" / "the way", Path("/sys/no-store-here")):
        with pytest.raises(Failure, match="cannot write: ") as caught:
            make_folder(place)
        assert "permissions" in caught.value.remedy


def test_json_is_read_if_it_is_whole_and_of_the_type(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert read_json(path, {"a": 1}) == {"a": 1}
    assert read_json(path / "below", [1]) == [1]
    path.write_text('{"b": 2}')
    assert read_json(path / "below", [1]) == [1]
    assert read_json(path, {"a": 1}) == {"b": 2}
    assert read_json(path, [1]) == [1]
    for spoilt in (b"", b"\0" * 9, b'{"b": ', b"\xff", b"[" * 100_000):
        path.write_bytes(spoilt)
        assert read_json(path, {"a": 1}) == {"a": 1}


def test_lines_are_read_if_they_are_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert read_lines(log) == []
    log.write_bytes(b"one\n\xfftwo\nthr")
    assert read_lines(log) == [b"one", b"\xfftwo"]


def test_folders_are_listed_in_order(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a/3"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").write_text("")
    assert [path.name for path in list_folder(tmp_path)] == ["a", "b", "file"]
    assert [path.name for path in list_subfolders(tmp_path)] == ["3", "1", "2"]
    assert list_folder(tmp_path / "none") == []


def test_what_cannot_be_read_is_not_taken_for_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("{}\n")
    for read in (lambda p: read_json(p, 0), read_lines, lambda p: list_folder(p.parent)):
        with out_of_descriptors(), pytest.raises(Failure) as caught:
            read(tmp_path / "x")
        assert caught.value.message == "cannot read: Too many open files"
        assert caught.value.where.startswith(str(tmp_path))


def test_sizes_are_formatted() -> None:
    assert [format_bytes(n) for n in (5, 1536, 3 << 40)] == ["5 B", "1.5 KiB", "3.0 TiB"]
