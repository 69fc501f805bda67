"""The code of a job: a zip file of the tracked files of a git repository, as they are on disk.

Only tracked files are packed, so that data, environments and secrets are not uploaded by accident.
A tracked link must lead to tracked files; it becomes a copy of them, because the head does not
unpack links. The package is named by the hash of its content, so that it is uploaded only once.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.atomic_io import format_bytes
from pipeline.errors import UserError

SIZE_LIMIT = 90 * 1024**2  # bytes; the head refuses 100 MiB with an unhelpful message
LISTED_FILES = 10
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # fixed, so that equal content has equal bytes


@dataclass(frozen=True)
class CodePackage:
    """A zip file and its content-addressed name."""

    name: str
    content: bytes
    files: int
    commit: str
    """Commit that is checked out, followed by `+dirty` if files differ; empty without a commit."""


def repository_root(folder: Path) -> Path:
    """Return the root of the git working tree that contains a folder.

    Raises:
        UserError: the folder is not in a git working tree.
    """
    return Path(_git(folder, "rev-parse", "--show-toplevel").strip())


def tracked_files(root: Path) -> dict[Path, Path]:
    """Return every existing tracked file: name in the package -> file on disk.

    Raises:
        UserError: a link leads to a file that git does not track.
    """
    names = [Path(name) for name in _git(root, "ls-files", "-z").split("\0") if name]
    root = root.resolve()
    files = {root / name for name in names}
    found = {}
    for name in names:
        for packed_name, file in _resolve_link(root, name, files):
            if file not in files:
                raise UserError(
                    f"{name} is a link to {file}, which git does not track",
                    where=str(root),
                    remedy=f"git rm --cached {name}; only tracked files are uploaded",
                )
            found[packed_name] = file
    return dict(sorted(found.items()))


def _resolve_link(root: Path, name: Path, files: set[Path]) -> Iterator[tuple[Path, Path]]:
    """Yield the file of this name, or the tracked files of the folder that it links to."""
    file = (root / name).resolve()
    if file.is_file():
        yield name, file
    elif (root / name).is_symlink() and file.is_dir():
        inside = [path for path in files if path.is_relative_to(file) and path.is_file()]
        if not inside:
            yield name, file
        for path in inside:
            yield name / path.relative_to(file), path.resolve()


def commit_of(root: Path) -> str:
    """Return the checked-out commit, followed by `+dirty` if tracked files differ from it."""
    try:
        commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD").strip()
    except UserError:
        return ""
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+dirty" if changed else commit


def pack(root: Path) -> CodePackage:
    """Pack the tracked files of a working tree.

    Raises:
        UserError: it is not a git working tree, or the package exceeds 90 MiB.
    """
    files = tracked_files(root)
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for name, path in files.items():
                _add(archive, name, path)
                if file.tell() > SIZE_LIMIT:
                    raise _too_large(root, files)
        file.seek(0)
        content = file.read()
    digest = hashlib.sha256(content).hexdigest()[:40]
    return CodePackage(f"_ray_pkg_{digest}.zip", content, len(files), commit_of(root))


def _add(archive: zipfile.ZipFile, name: Path, path: Path) -> None:
    info = zipfile.ZipInfo(name.as_posix(), _ZIP_DATE)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = (path.stat().st_mode & 0o777) << 16
    with path.open("rb") as source, archive.open(info, "w") as target:
        while block := source.read(1 << 20):
            target.write(block)


def _too_large(root: Path, files: Mapping[Path, Path]) -> UserError:
    sizes = sorted(((path.stat().st_size, name) for name, path in files.items()), reverse=True)
    largest = "\n".join(
        f"  {format_bytes(size):>10}  {path}" for size, path in sizes[:LISTED_FILES]
    )
    return UserError(
        f"the tracked files exceed {format_bytes(SIZE_LIMIT)} when packed; the largest:\n{largest}",
        where=str(root),
        remedy="git rm --cached files that are not code; put data on a path that the cluster sees",
    )


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        raise UserError(
            "git is not installed", remedy="install git; it lists the files to upload"
        ) from None
    except subprocess.CalledProcessError:
        raise UserError(
            "not a git repository; only tracked files are uploaded",
            where=str(folder),
            remedy="git init && git add your code; or `code: installed` in the cluster's file",
        ) from None
    return done.stdout
