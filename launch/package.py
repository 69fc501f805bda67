"""The code that a job runs: the tracked files of the repository, as they stand on this disk.

Only what git tracks is packed, so neither data, environments nor secrets travel by accident. The
name is the hash of the content: what the head has already is not sent again.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.disk import readable
from pipeline.errors import UserError

LIMIT = 90 * 1024**2  # bytes: the head's own limit is 100 MiB, with a message that helps nobody
NAMED = 10
_ALWAYS = (1980, 1, 1, 0, 0, 0)  # zip has no earlier date; one date, so one content is one name


@dataclass(frozen=True)
class Package:
    """A zip file and its content-addressed name."""

    name: str
    content: bytes
    files: int


def repository(folder: Path) -> Path:
    """The top of the git working tree around a folder.

    Raises:
        UserError: there is none.
    """
    return Path(_git(folder, "rev-parse", "--show-toplevel").strip())


def tracked(root: Path) -> list[Path]:
    """The tracked files that exist, relative to the root, sorted."""
    names = _git(root, "ls-files", "-z").split("\0")
    found = (Path(name) for name in names if name)
    return sorted(path for path in found if (root / path).is_file())


def pack(root: Path) -> Package:
    """Zip the tracked files of a working tree.

    Raises:
        UserError: it is no git working tree, or the zip is over 90 MiB.
    """
    files = tracked(root)
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for path in files:
                _add(archive, root, path)
                if file.tell() > LIMIT:
                    raise _too_large(root, files)
        file.seek(0)
        content = file.read()
    name = f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:40]}.zip"
    return Package(name, content, len(files))


def _add(archive: zipfile.ZipFile, root: Path, path: Path) -> None:
    info = zipfile.ZipInfo(path.as_posix(), _ALWAYS)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = ((root / path).stat().st_mode & 0o777) << 16
    with (root / path).open("rb") as source, archive.open(info, "w") as target:
        while block := source.read(1 << 20):
            target.write(block)


def _too_large(root: Path, files: Iterable[Path]) -> UserError:
    sizes = sorted((((root / path).stat().st_size, path) for path in files), reverse=True)
    largest = "\n".join(f"  {readable(size):>10}  {path}" for size, path in sizes[:NAMED])
    return UserError(
        f"the tracked files make a package of over {readable(LIMIT)}; the largest:\n{largest}",
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
