"""The publish primitive, on a real file system."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import artifact as module
from pipeline.artifact import (
    MANIFEST,
    Artifact,
    append_line,
    check_name,
    code_version,
    digest_of,
    environment,
    hash_file,
    list_files,
    move,
    publish,
    readable,
    whole_lines,
    write_atomic,
)
from pipeline.errors import CorruptArtifact, Failure, UserError

FACTS = {
    "uses": "clean",
    "kind": "Documents",
    "fingerprint": "0" * 16,
    "metrics": {"kept": 3, "loss": "nan"},
}


def stage(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    staged = stage(tmp_path / "staged", {"a.txt": b"abc", "deep/b.bin": b"\0" * 9})
    stage(staged, {"observed/metrics.jsonl": b"{}\n"})
    return publish(staged, tmp_path / "artifacts" / "clean" / "one", FACTS)


def reseal(artifact: Artifact, **changes: object) -> None:
    """A forged manifest: whoever can write it can seal it too."""
    manifest = {**artifact.manifest, **changes}
    manifest["seal"] = module._seal(manifest)
    (artifact.path / MANIFEST).write_bytes(module._render(manifest))


def test_what_is_published_opens_with_its_facts(made: Artifact, tmp_path: Path) -> None:
    again = Artifact.open(made.path)
    assert again == made
    assert (again.uses, again.kind, again.fingerprint) == ("clean", "Documents", "0" * 16)
    assert again.metrics["kept"] == 3
    assert again.metrics["loss"] != again.metrics["loss"]
    assert again.size == 15
    assert again.verify() == []
    assert not (tmp_path / "staged").exists()


def test_the_digest_leaves_out_what_was_merely_observed(made: Artifact, tmp_path: Path) -> None:
    other = stage(tmp_path / "other", {"a.txt": b"abc", "deep/b.bin": b"\0" * 9})
    stage(other, {"observed/metrics.jsonl": b"other timings"})
    assert publish(other, tmp_path / "two", FACTS).digest == made.digest
    changed = stage(tmp_path / "changed", {"a.txt": b"abd", "deep/b.bin": b"\0" * 9})
    assert publish(changed, tmp_path / "three", FACTS).digest != made.digest


def test_the_first_to_publish_wins(made: Artifact, tmp_path: Path) -> None:
    late = stage(tmp_path / "late", {"a.txt": b"late"})
    with pytest.raises(FileExistsError):
        publish(late, made.path, FACTS)
    assert (late / "a.txt").read_bytes() == b"late"
    assert Artifact.open(made.path).verify() == []


def test_a_check_that_raises_stops_the_commit(tmp_path: Path) -> None:
    def refuse() -> None:
        raise Failure("lost")

    staged = stage(tmp_path / "staged", {"a": b"1"})
    with pytest.raises(Failure, match="lost"):
        publish(staged, tmp_path / "target", FACTS, check=refuse)
    assert not (tmp_path / "target").exists()


def test_known_hashes_are_not_computed_again(tmp_path: Path) -> None:
    staged = stage(tmp_path / "staged", {"a": b"1"})
    known = {"a": hash_file(staged / "a")}
    assert publish(staged, tmp_path / "t", FACTS, hashes=known).verify() == []


def test_half_written_files_of_killed_writers_are_left_behind(tmp_path: Path) -> None:
    staged = stage(tmp_path / "staged", {"a": b"1", ".a.12-34.new": b"half", ".keep": b""})
    made = publish(staged, tmp_path / "target", FACTS)
    assert [file["path"] for file in made.manifest["files"]] == [".keep", "a"]
    assert not (made.path / ".a.12-34.new").exists()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda p: (p / "a.txt").unlink(), "a.txt: missing"),
        (lambda p: (p / "a.txt").write_bytes(b"ab"), "a.txt: 2 bytes instead of 3"),
        (
            lambda p: ((p / "a.txt").unlink(), (p / "a.txt").symlink_to("/etc/hosts")),
            "a.txt: not a regular file",
        ),
        (lambda p: (p / MANIFEST).unlink(), "manifest.json: missing or unreadable"),
        (lambda p: (p / MANIFEST).write_text("[1]"), "manifest.json: missing or unreadable"),
    ],
)
def test_damage_is_seen_at_opening(made: Artifact, damage: object, problem: str) -> None:
    damage(made.path)  # type: ignore[operator]
    with pytest.raises(CorruptArtifact, match=problem):
        Artifact.open(made.path)


def test_verify_sees_bytes_strangers_and_links(made: Artifact) -> None:
    (made.path / "a.txt").write_bytes(b"abd")
    (made.path / "stray").write_bytes(b"")
    (made.path / ".nfs01").write_bytes(b"")
    assert made.verify() == ["stray: not in the manifest", "a.txt: its bytes changed"]
    (made.path / "stray").unlink()
    (made.path / "link").symlink_to(made.path)
    assert made.verify()[0] == "link: artifacts hold plain files, not links or devices"
    (made.path / "a.txt").unlink()
    assert "a.txt: missing" in made.verify()


def test_a_forged_manifest_cannot_leave_its_folder(made: Artifact) -> None:
    for path in ("../../etc/passwd", "/etc/passwd", "a/../../b", "a\0b"):
        reseal(made, files=[{"path": path, "size": 1, "sha256": "0" * 64}])
        with pytest.raises(CorruptArtifact, match="leaves the artifact"):
            Artifact.read(made.path)


def test_a_newer_schema_is_not_damage(made: Artifact) -> None:
    reseal(made, schema=2)
    with pytest.raises(UserError, match="schema 2, this one reads 1"):
        Artifact.read(made.path)


def test_a_flipped_bit_anywhere_in_a_manifest_is_seen(made: Artifact) -> None:
    path = made.path / MANIFEST
    sound = path.read_bytes()
    for place in range(len(sound)):
        flipped = bytearray(sound)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(CorruptArtifact):
            Artifact.read(made.path)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("a")])
def test_only_plain_files_are_published(tmp_path: Path, make: object) -> None:
    staged = stage(tmp_path / "staged", {"a": b"1"})
    make(staged / "odd")  # type: ignore[operator]
    with pytest.raises(Failure, match="odd: artifacts hold plain files"):
        publish(staged, tmp_path / "target", FACTS)


def test_file_names_with_control_characters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="control characters"):
        list_files(stage(tmp_path / "staged", {"a\x1b[2Jb": b"1"}))


file_names = st.from_regex(r"[a-z]{1,4}(/[a-z]{1,4})?\.txt", fullmatch=True)
folders = st.dictionaries(file_names, st.binary(max_size=64), min_size=1, max_size=5)


@settings(max_examples=15, deadline=None)
@given(files=folders, data=st.data())
def test_any_folder_comes_back_and_any_flip_is_found(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("any")
    made = publish(stage(root / "staged", files), root / "made", FACTS)
    assert {name: (made.path / name).read_bytes() for name in list_files(made.path)} == files
    assert Artifact.open(made.path).verify() == []
    assert made.digest == digest_of(list(reversed(made.manifest["files"])))
    full = sorted(name for name, content in files.items() if content)
    if full:
        name = data.draw(st.sampled_from(full))
        bit = data.draw(st.integers(0, len(files[name]) * 8 - 1))
        flipped = bytearray(files[name])
        flipped[bit // 8] ^= 1 << bit % 8
        before = made.stamp()
        (made.path / name).write_bytes(flipped)
        assert made.verify() == [f"{name}: its bytes changed"]
        assert made.stamp() != before


# --- files and folders -------------------------------------------------------------------------


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


@given(content=st.binary(max_size=200))
def test_whole_lines_are_those_that_end(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("lines") / "log"
    assert whole_lines(path) == 0
    path.write_bytes(content)
    assert whole_lines(path) == content.rfind(b"\n") + 1


def test_move_tells_a_taken_place_from_other_trouble(tmp_path: Path) -> None:
    source = stage(tmp_path / "source", {"a": b"1"})
    taken = stage(tmp_path / "taken", {"a": b"1"})
    for place in (taken, taken / "a"):
        with pytest.raises(FileExistsError):
            move(source, place)
    with pytest.raises(FileNotFoundError):
        move(tmp_path / "nothing", tmp_path / "there")


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
    assert "needed" not in module.disk_full(tmp_path / "gone" / "x").message


def test_sizes_are_said_in_words() -> None:
    assert [readable(n) for n in (5, 1536, 3 << 40)] == ["5 B", "1.5 KiB", "3.0 TiB"]


@pytest.mark.parametrize("name", ["..", ".a", "A", "a/b", "", "a" * 65, "a\n", "ä", "a\0"])
def test_names_that_could_leave_a_folder_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="cannot name a stage"):
        check_name(name, "a stage")


def test_good_names_pass() -> None:
    assert check_name("tokenize.pack_2-x", "a stage") == "tokenize.pack_2-x"


# --- where it came from ------------------------------------------------------------------------


@pytest.fixture
def fresh_code() -> object:
    code_version.cache_clear()
    yield
    code_version.cache_clear()


def test_the_commit_comes_from_git(fresh_code: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADWATER_COMMIT", raising=False)
    answers = {"rev-parse": "abc", "status": " M x"}
    monkeypatch.setattr(module, "_git", lambda command, *_: answers[command])
    assert code_version() == {"commit": "abc", "dirty": True}


def test_without_git_there_is_no_commit(
    fresh_code: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HEADWATER_COMMIT", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_version() == {"commit": None, "dirty": False}


def test_git_answers_in_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    git = module._git("--version")
    assert git is None or git.startswith("git version")


@pytest.mark.parametrize(("shipped", "dirty"), [("abc", False), ("abc+dirty", True)])
def test_shipped_code_names_its_commit(
    fresh_code: None, monkeypatch: pytest.MonkeyPatch, shipped: str, dirty: bool
) -> None:
    monkeypatch.setenv("HEADWATER_COMMIT", shipped)
    assert code_version() == {"commit": "abc", "dirty": dirty}


def test_the_environment_lists_what_is_installed() -> None:
    known = environment()
    assert known["python"].startswith("3.")
    assert "numpy" in known["packages"]
    assert json.dumps(known)
