"""The publish primitive, on a real file system."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from faulty_disk import out_of_descriptors
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import CorruptArtifact, Failure, UserError
from pipeline.storage import artifact as module
from pipeline.storage.artifact import MANIFEST, Artifact, digest_of, hash_file, list_files, publish

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
    """Forge a manifest, with a valid seal."""
    manifest = {**artifact.manifest, **changes}
    manifest["seal"] = module._seal(manifest)
    (artifact.path / MANIFEST).write_bytes(module._render(manifest))


def test_what_is_published_opens_with_its_facts(made: Artifact, tmp_path: Path) -> None:
    again = Artifact.open(made.path)
    assert again == made
    assert (again.uses, again.kind, again.fingerprint) == ("clean", "Documents", "0" * 16)
    assert again.metrics["kept"] == 3
    assert again.metrics["loss"] is None
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


def test_what_cannot_be_read_is_not_damaged(
    made: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    for look in (lambda: Artifact.read(made.path), made.verify):
        with out_of_descriptors(), pytest.raises(Failure, match="cannot read: Too many") as caught:
            look()
        assert not isinstance(caught.value, CorruptArtifact)

    def stale(path: Path, **_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    monkeypatch.setattr(os, "lstat", stale)
    for look in (made.check_sizes, made.verify):
        with pytest.raises(Failure, match="cannot read: Stale file handle") as caught:
            look()
        assert caught.value.where == str(made.path / "a.txt")


def test_a_folder_that_cannot_be_listed_is_not_published_as_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = stage(tmp_path / "staged", {"a": b"1", "deep/b": b"2"})
    true = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("deep"):
            monkeypatch.setattr(os, "scandir", true)
            raise OSError(errno.EIO, "Input/output error", str(path))
        return true(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(Failure, match="Input/output error"):
        publish(staged, tmp_path / "target", FACTS)
    assert not (tmp_path / "target").exists()


def test_a_file_that_is_quarantined_meanwhile_is_missing(
    made: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(path: Path) -> str:
        path.unlink()
        return hash_file(path)

    monkeypatch.setattr(module, "hash_file", vanish)
    assert made.verify()[0] == "a.txt: missing"
    shutil.rmtree(made.path)
    assert made.verify()[0] == "a.txt: missing"


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
        before = made.change_token()
        (made.path / name).write_bytes(flipped)
        assert made.verify() == [f"{name}: its bytes changed"]
        assert made.change_token() != before
