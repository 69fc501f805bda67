from __future__ import annotations

import io
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from launch.cluster import code_package
from pipeline.errors import UserError


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a repository with tracked, changed, deleted, untracked and ignored files."""
    git(tmp_path, "init", "-q")
    (tmp_path / "mystages").mkdir()
    for name in ("mystages/a.py", "gone.py", "run.sh", "größe.txt"):
        (tmp_path / name).write_text(f"{name}\n")
    (tmp_path / "run.sh").chmod(0o755)
    (tmp_path / ".gitignore").write_text("secret.env\n")
    git(tmp_path, "add", ".")
    (tmp_path / "mystages/a.py").write_text("changed since\n")
    (tmp_path / "gone.py").unlink()
    (tmp_path / "secret.env").write_text("TOKEN=1\n")
    (tmp_path / "data.bin").write_bytes(b"x" * 1000)
    return tmp_path


def names(made: code_package.CodePackage) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(made.content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_only_tracked_files_are_packed_as_on_disk(root: Path) -> None:
    found = names(code_package.pack(root))
    assert set(found) == {".gitignore", "größe.txt", "mystages/a.py", "run.sh"}
    assert found["mystages/a.py"] == b"changed since\n"


def test_link_is_packed_as_a_copy(root: Path) -> None:
    (root / "again.sh").symlink_to("run.sh")
    (root / "same").symlink_to("mystages")
    (root / "dangling").symlink_to("nowhere")
    git(root, "add", "again.sh", "same", "dangling")
    found = names(code_package.pack(root))
    assert found["again.sh"] == b"run.sh\n"
    assert found["same/a.py"] == b"changed since\n"
    assert "dangling" not in found


@pytest.mark.parametrize("to", ["untracked file", "outside", "outside folder", "replaced folder"])
def test_link_to_an_untracked_file_is_refused(
    root: Path, to: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Refuse a committed link, which would upload secrets of this machine."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "a.py").write_text("secret\n")
    if to == "replaced folder":
        (root / "mystages/a.py").unlink()
        (root / "mystages").rmdir()
        (root / "mystages").symlink_to(outside)
    else:
        targets = {"untracked file": Path("secret.env"), "outside": outside / "a.py"}
        (root / "link").symlink_to(targets.get(to, outside))
        git(root, "add", "link")
    with pytest.raises(UserError, match="which git does not track"):
        code_package.pack(root)


def test_commit_and_dirty_flag(root: Path) -> None:
    assert code_package.pack(root).commit == ""
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    git(root, *author, "commit", "-qm", "first")
    head = (root / ".git/refs/heads").glob("*")
    commit = next(head).read_text().strip()
    assert code_package.pack(root).commit == f"{commit}+dirty"
    git(root, "checkout", "--", ".")
    assert code_package.pack(root).commit == commit


def test_name_is_the_hash_of_the_content(root: Path) -> None:
    first = code_package.pack(root)
    os.utime(root / "run.sh", (1, 1))
    assert code_package.pack(root) == first
    (root / "run.sh").write_text("other\n")
    assert code_package.pack(root).name != first.name


def test_executable_bits_are_kept(root: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(code_package.pack(root).content)) as archive:
        assert archive.getinfo("run.sh").external_attr >> 16 == 0o755


def test_oversized_package_lists_the_largest_files(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(12):
        (root / f"big-{k:02}.bin").write_bytes(os.urandom(2000 + 100 * k))
    git(root, "add", ".")
    monkeypatch.setattr(code_package, "SIZE_LIMIT", 20_000)
    with pytest.raises(UserError) as refused:
        code_package.pack(root)
    listed = [line.split()[-1] for line in refused.value.message.splitlines()[1:]]
    assert listed == [f"big-{k:02}.bin" for k in range(11, 1, -1)]
    assert "19.5 KiB" in refused.value.message


def test_limit_is_below_that_of_ray() -> None:
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

    assert code_package.SIZE_LIMIT == 90 * 1024**2 < DASHBOARD_CLIENT_MAX_SIZE


def test_pack_needs_a_git_repository(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a git repository"):
        code_package.repository_root(tmp_path)
