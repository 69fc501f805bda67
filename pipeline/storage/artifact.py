"""The publish primitive: how bytes become an artifact, and how they are trusted afterwards.

An artifact is a folder with a `manifest.json`, which is written last and is the commit: without
it the folder does not exist. The files are written somewhere else, fsynced with their folders,
sealed by the manifest and renamed into place, so that a kill or a power cut at any instant
leaves either the whole artifact or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.atomic_io import (
    NOT_FOUND,
    disk_errors,
    fsync_path,
    move_folder,
    read_json,
    write_atomic,
)
from pipeline.errors import CorruptArtifact, Failure, UserError

SCHEMA = 1
MANIFEST = "manifest.json"
OBSERVED = "observed"  # timings, curves: published, but outside the digest

_TEMPORARY = re.compile(r"\..+\.\d+-\d+\.new")


@dataclass(frozen=True)
class Artifact:
    """A published folder and its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Artifact:
        """Read the manifest alone.

        Raises:
            CorruptArtifact: there is none, or it is not what was written.
            UserError: a newer version of the program wrote it.
            Failure: the disk does not let it be read, which says nothing of the artifact.
        """
        return cls(path, _read_manifest(path))

    @classmethod
    def open(cls, path: Path) -> Artifact:
        """Read the manifest and check that every file is there with its size.

        Raises:
            CorruptArtifact: something is missing or has another size.
        """
        artifact = cls.read(path)
        if problems := artifact.check_sizes():
            raise CorruptArtifact("; ".join(problems), where=str(path))
        return artifact

    @property
    def uses(self) -> str:
        """The stage function that made it."""
        return str(self.manifest["uses"])

    @property
    def kind(self) -> str:
        """What it holds: Documents, Tokens, Model…"""
        return str(self.manifest["kind"])

    @property
    def fingerprint(self) -> str:
        """What it was made from: 16 hex digits."""
        return str(self.manifest["fingerprint"])

    @property
    def digest(self) -> str:
        """What it holds: sha256 over the paths and hashes of its files, `observed/` left out."""
        return str(self.manifest["digest"])

    @property
    def metrics(self) -> dict[str, float]:
        """The stage's final figures."""
        return {name: float(value) for name, value in self.manifest["metrics"].items()}

    @property
    def size(self) -> int:
        """Bytes of all files, the manifest left out."""
        return sum(file["size"] for file in self.manifest["files"])

    def check_sizes(self) -> list[str]:
        """What is missing or has another size; costs one look at each file's metadata."""
        with disk_errors(self.path, to="read"):
            return [problem for file in self.manifest["files"] if (problem := self._size(file))]

    def verify(self) -> list[str]:
        """Every difference from what was published; reads and hashes all bytes.

        Raises:
            Failure: the disk does not let them be read, which says nothing of the artifact.
        """
        with disk_errors(self.path, to="read"):
            contents = [self._content(file) for file in self.manifest["files"]]
            return [*self._unlisted_files(), *filter(None, contents)]

    def _unlisted_files(self) -> list[str]:
        """What lies in the folder and was not published."""
        listed = {file["path"] for file in self.manifest["files"]}
        try:
            found = list_files(self.path)
        except FileNotFoundError:
            return []
        except Failure as error:
            return [error.message]
        return [
            f"{name}: not in the manifest"
            for name in found
            if name not in listed and not PurePosixPath(name).name.startswith(".")
        ]

    def change_token(self) -> str:
        """Changes whenever a file is added, replaced or written to (inode, mtime, size)."""
        state = hashlib.sha256(self.digest.encode())
        for name in [*list_files(self.path), MANIFEST]:
            info = (self.path / name).stat()
            state.update(f"{name}\0{info.st_ino}\0{info.st_mtime_ns}\0{info.st_size}\n".encode())
        return state.hexdigest()

    def _size(self, file: Mapping[str, Any]) -> str:
        try:
            info = os.lstat(self.path / file["path"])
        except NOT_FOUND:
            return f"{file['path']}: missing"
        if not stat.S_ISREG(info.st_mode):
            return f"{file['path']}: not a regular file"
        if info.st_size != file["size"]:
            return f"{file['path']}: {info.st_size} bytes instead of {file['size']}"
        return ""

    def _content(self, file: Mapping[str, Any]) -> str:
        if problem := self._size(file):
            return problem
        try:
            same = hash_file(self.path / file["path"]) == file["sha256"]
        except NOT_FOUND:  # another reader puts the artifact aside at this moment
            return f"{file['path']}: missing"
        return "" if same else f"{file['path']}: its bytes changed"


def publish(
    staged: Path,
    target: Path,
    facts: Mapping[str, Any],
    *,
    hashes: Mapping[str, str] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Artifact:
    """Commit a folder: sync its files, seal it with a manifest, rename it into place.

    Args:
        staged: the finished folder, on the same file system; it is gone afterwards.
        target: where it goes. `manifest.json` at its top is this function's.
        facts: what the manifest says besides `schema`, `files`, `digest` and `seal`.
        hashes: sha256 by relative path, of files whose writer hashed them already.
        check: called last before the commit; what it raises stops the commit (a lost lease).

    Raises:
        FileExistsError: somebody published there first; theirs stands, `staged` is untouched.
        Failure: the disk is full, or the folder holds a link or an unsafe name.
    """
    known = hashes or {}
    with disk_errors(target):
        files = [_describe(staged, name, known) for name in _publishable_files(staged)]
        for folder in _folders(staged):
            fsync_path(folder)
        manifest = {**facts, "schema": SCHEMA, "files": files, "digest": digest_of(files)}
        manifest["seal"] = _seal(manifest)
        write_atomic(staged / MANIFEST, _render(manifest))
        check()
        move_folder(staged, target)
    return Artifact(target, manifest)


def digest_of(files: list[dict[str, Any]]) -> str:
    """sha256 over the sorted (path, sha256) of the files that are not merely observed."""
    lines = sorted(f"{f['path']}\0{f['sha256']}\n" for f in files if not f.get("observed"))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> list[str]:
    """The relative paths of all files but the manifest, sorted.

    Raises:
        Failure: something is neither a file nor a folder, or has an unsafe name.
    """
    found = []
    for parent, folders, files in os.walk(folder, onerror=_raise):
        for name in [*folders, *files]:
            path = Path(parent) / name
            relative = path.relative_to(folder).as_posix()
            mode = os.lstat(path).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise Failure(f"{relative}: artifacts hold plain files, not links or devices")
            if not relative.isprintable():
                raise Failure(f"{relative!r}: a file name with control characters")
            if stat.S_ISREG(mode) and relative != MANIFEST:
                found.append(relative)
    return sorted(found)


def _publishable_files(staged: Path) -> list[str]:
    """The files to publish; what killed writers left half-written beside them is removed."""
    names = list_files(staged)
    for name in names:
        if _TEMPORARY.fullmatch(PurePosixPath(name).name):
            os.unlink(staged / name)  # noqa: PTH108
    return [name for name in names if not _TEMPORARY.fullmatch(PurePosixPath(name).name)]


def _folders(staged: Path) -> list[Path]:
    """The folder and all below it, the deepest first."""
    return [Path(parent) for parent, _, _ in os.walk(staged, topdown=False, onerror=_raise)]


def _raise(error: OSError) -> None:
    """A folder that cannot be listed is not an empty one."""
    raise error


def _describe(staged: Path, name: str, known: Mapping[str, str]) -> dict[str, Any]:
    """Sync one file; its entry of the manifest."""
    path = staged / name
    fsync_path(path)
    entry: dict[str, Any] = {
        "path": name,
        "size": path.stat().st_size,
        "sha256": known.get(name) or hash_file(path),
    }
    return entry | ({"observed": True} if name.startswith(f"{OBSERVED}/") else {})


def _render(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def _seal(manifest: Mapping[str, Any]) -> str:
    """The hash that makes a flipped bit of the manifest itself visible."""
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(_render(rest)).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = read_json(folder / MANIFEST, {})
    try:
        sealed = manifest["seal"] == _seal(manifest)
        schema, names = int(manifest["schema"]), [str(file["path"]) for file in manifest["files"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CorruptArtifact(f"{MANIFEST}: missing or unreadable", where=str(folder)) from None
    if not sealed:
        raise CorruptArtifact(f"{MANIFEST}: its bytes changed", where=str(folder))
    if schema > SCHEMA:
        raise UserError(
            f"written by a newer version (schema {schema}, this one reads {SCHEMA})",
            where=str(folder),
            remedy="upgrade, or use another store",
        )
    for name in names:
        if name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise CorruptArtifact(f"{name!r}: leaves the artifact", where=str(folder))
    return manifest
