"""The code that a job runs: the tracked files of the repository, as they stand on this disk.

Only what git tracks is packed, so neither data, environments nor secrets travel by accident: a
tracked link may stand for tracked files alone, of which it becomes a copy (the head unpacks no
links). The name is the hash of the content: what the head has already is not sent again.
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

LIMIT = 90 * 1024**2  # bytes: the head's own limit is 100 MiB, with a message that helps nobody
NAMED = 10
_ALWAYS = (1980, 1, 1, 0, 0, 0)  # zip has no earlier date; one date, so one content is one name


@dataclass(frozen=True)
class CodePackage:
    """A zip file and its content-addressed name."""

    name: str
    content: bytes
    files: int
    commit: str
    """What was checked out, with `+dirty` after it if files had changed; empty before the first."""


def repository_root(folder: Path) -> Path:
    """The top of the git working tree around a folder.

    Raises:
        UserError: there is none.
    """
    return Path(_git(folder, "rev-parse", "--show-toplevel").strip())


def tracked_files(root: Path) -> dict[Path, Path]:
    """Every tracked file that exists: what it is called, and the file itself.

    Raises:
        UserError: a link leads to something that git does not track.
    """
    names = [Path(name) for name in _git(root, "ls-files", "-z").split("\0") if name]
    root = root.resolve()
    files = {root / name for name in names}
    found = {}
    for name in names:
        for called, file in _behind(root, name, files):
            if file not in files:
                raise UserError(
                    f"{name} is a link to {file}, which git does not track",
                    where=str(root),
                    remedy=f"git rm --cached {name}; only tracked files are shipped",
                )
            found[called] = file
    return dict(sorted(found.items()))


def _behind(root: Path, name: Path, files: set[Path]) -> Iterator[tuple[Path, Path]]:
    """The file of that name, or those in the folder that a link of that name leads to."""
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
    """The commit that is checked out, with `+dirty` if tracked files differ from it."""
    try:
        commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD").strip()
    except UserError:
        return ""
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+dirty" if changed else commit


def pack(root: Path) -> CodePackage:
    """Zip the tracked files of a working tree.

    Raises:
        UserError: it is no git working tree, or the zip is over 90 MiB.
    """
    files = tracked_files(root)
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for name, path in files.items():
                _add(archive, name, path)
                if file.tell() > LIMIT:
                    raise _too_large(root, files)
        file.seek(0)
        content = file.read()
    digest = hashlib.sha256(content).hexdigest()[:40]
    return CodePackage(f"_ray_pkg_{digest}.zip", content, len(files), commit_of(root))


def _add(archive: zipfile.ZipFile, name: Path, path: Path) -> None:
    info = zipfile.ZipInfo(name.as_posix(), _ALWAYS)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = (path.stat().st_mode & 0o777) << 16
    with path.open("rb") as source, archive.open(info, "w") as target:
        while block := source.read(1 << 20):
            target.write(block)


def _too_large(root: Path, files: Mapping[Path, Path]) -> UserError:
    sizes = sorted(((path.stat().st_size, name) for name, path in files.items()), reverse=True)
    largest = "\n".join(f"  {format_bytes(size):>10}  {path}" for size, path in sizes[:NAMED])
    return UserError(
        f"the tracked files make a package of over {format_bytes(LIMIT)}; the largest:\n{largest}",
        where=str(root),
        remedy="git rm --cached what is no code; data belongs on a path that the cluster sees",
    )


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        raise UserError("git is not installed", remedy="it says which files to ship") from None
    except subprocess.CalledProcessError:
        raise UserError(
            "this is no git repository, and only tracked files are shipped",
            where=str(folder),
            remedy="git init && git add your code; or `code: installed` in the cluster's file",
        ) from None
    return done.stdout
