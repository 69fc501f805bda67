"""Artifacts: published folders whose bytes can be verified.

An artifact is a folder with a `manifest.json`. The manifest is written last and is the commit:
without it the folder does not count as an artifact. The files are written elsewhere, fsynced with
their folders, sealed by the manifest and renamed into place, so that a kill or a power cut at any
instant leaves either the whole artifact or none.
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

from pipeline import atomic_io
from pipeline.errors import CorruptArtifact, Failure, UserError
from pipeline.plain_data import read_numbers

SCHEMA = 1
MANIFEST = "manifest.json"
OBSERVED = "observed"  # timings, curves: published, but not part of the digest

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
            CorruptArtifact: it is missing, or its bytes changed.
            UserError: a newer version of the program wrote it.
            Failure: it cannot be read.
        """
        return cls(path, _read_manifest(path))

    @classmethod
    def open(cls, path: Path) -> Artifact:
        """Read the manifest and check that every file is there with its size.

        Raises:
            CorruptArtifact: a file is missing or has another size.
        """
        artifact = cls.read(path)
        if problems := artifact.check_sizes():
            raise CorruptArtifact("; ".join(problems), where=str(path))
        return artifact

    @property
    def uses(self) -> str:
        """The stage that made it."""
        return str(self.manifest["uses"])

    @property
    def kind(self) -> str:
        """Its kind: Documents, Tokens, Model…"""
        return str(self.manifest["kind"])

    @property
    def fingerprint(self) -> str:
        """The hash of everything that decides its bytes: 16 hex digits."""
        return str(self.manifest["fingerprint"])

    @property
    def digest(self) -> str:
        """The hash of its bytes: sha256 over paths and hashes of its files except `observed/`."""
        return str(self.manifest["digest"])

    @property
    def metrics(self) -> dict[str, float | None]:
        """The final metrics of the stage; None where there is no finite value."""
        return read_numbers(self.manifest["metrics"])

    @property
    def size(self) -> int:
        """The bytes of all files except the manifest."""
        return sum(file["size"] for file in self.manifest["files"])

    def check_sizes(self) -> list[str]:
        """Return what is missing or has another size; costs one stat call per file."""
        with atomic_io.disk_errors(self.path, to="read"):
            return list(filter(None, map(self._check_size, self.manifest["files"])))

    def verify(self) -> list[str]:
        """Return every difference from what was published; reads and hashes all bytes.

        Raises:
            Failure: the files cannot be read.
        """
        with atomic_io.disk_errors(self.path, to="read"):
            changed = list(filter(None, map(self._check_bytes, self.manifest["files"])))
            listed = {file["path"] for file in self.manifest["files"]}
            try:
                found = list_files(self.path)
            except FileNotFoundError:
                return changed
            except Failure as error:
                return [error.message, *changed]
            hidden = (name for name in found if PurePosixPath(name).name.startswith("."))
            unlisted = sorted(set(found) - listed - set(hidden))
            return [*(f"{name}: not in the manifest" for name in unlisted), *changed]

    def change_token(self) -> str:
        """Return a hash that changes when a file is added, replaced or written to."""
        state = hashlib.sha256(self.digest.encode())
        for name in [*list_files(self.path), MANIFEST]:
            info = (self.path / name).stat()
            state.update(f"{name}\0{info.st_ino}\0{info.st_mtime_ns}\0{info.st_size}\n".encode())
        return state.hexdigest()

    def _check_size(self, file: Mapping[str, Any]) -> str:
        try:
            info = os.lstat(self.path / file["path"])
        except atomic_io.NOT_FOUND:
            return f"{file['path']}: missing"
        if not stat.S_ISREG(info.st_mode):
            return f"{file['path']}: not a regular file"
        size, expected = info.st_size, file["size"]
        return "" if size == expected else f"{file['path']}: {size} bytes instead of {expected}"

    def _check_bytes(self, file: Mapping[str, Any]) -> str:
        if problem := self._check_size(file):
            return problem
        try:
            same = hash_file(self.path / file["path"]) == file["sha256"]
        except atomic_io.NOT_FOUND:  # another reader is quarantining the artifact
            return f"{file['path']}: missing"
        return "" if same else f"{file['path']}: its bytes changed"


def publish(
    staged: Path, target: Path, facts: Mapping[str, Any], check: Callable[[], None] = lambda: None
) -> Artifact:
    """Commit a folder: sync its files, seal it with a manifest, rename it into place.

    Args:
        staged: the finished folder, on the same file system; it is gone afterwards.
        target: the new path. `manifest.json` in it is written by this function.
        facts: the manifest except `schema`, `files`, `digest` and `seal`.
        check: called last before the commit; its error stops the commit (a lost lease).

    Raises:
        FileExistsError: another process published there first; `staged` is untouched.
        Failure: the disk is full, or the folder holds a link or an unsafe name.
    """
    files: list[dict[str, Any]] = []
    with atomic_io.disk_errors(target):
        for name in list_files(staged):
            path = staged / name
            if _TEMPORARY.fullmatch(path.name):  # half-written by a killed process
                os.unlink(path)  # noqa: PTH108
                continue
            atomic_io.fsync_path(path)
            size = path.stat().st_size
            files.append({"path": name, "size": size, "sha256": hash_file(path)})
            if name.startswith(f"{OBSERVED}/"):
                files[-1]["observed"] = True
        for parent, _, _ in os.walk(staged, topdown=False, onerror=_raise):
            atomic_io.fsync_path(Path(parent))
        manifest = {**facts, "schema": SCHEMA, "files": files, "digest": digest_of(files)}
        manifest["seal"] = _seal(manifest)
        atomic_io.write_atomic(staged / MANIFEST, _render(manifest))
        check()
        atomic_io.move_folder(staged, target)
    return Artifact(target, manifest)


def digest_of(files: list[dict[str, Any]]) -> str:
    """Return the sha256 over the sorted (path, sha256) of the files that are not `observed`."""
    lines = sorted(f"{f['path']}\0{f['sha256']}\n" for f in files if not f.get("observed"))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> list[str]:
    """Return the relative paths of all files except the manifest, sorted.

    Raises:
        Failure: an entry is neither a file nor a folder, or has an unsafe name.
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


def _raise(error: OSError) -> None:
    """Keep `os.walk` from treating a folder that cannot be listed as an empty one."""
    raise error


def _render(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def _seal(manifest: Mapping[str, Any]) -> str:
    """Return the hash by which a flipped bit of the manifest itself is found."""
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(_render(rest)).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = atomic_io.read_json(folder / MANIFEST, {})
    where = str(folder)
    try:
        sealed = manifest["seal"] == _seal(manifest)
        schema, names = int(manifest["schema"]), [str(file["path"]) for file in manifest["files"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CorruptArtifact(f"{MANIFEST}: missing or unreadable", where=where) from None
    if not sealed:
        raise CorruptArtifact(f"{MANIFEST}: its bytes changed", where=where)
    if schema > SCHEMA:
        message = f"written by a newer version (schema {schema}, this one reads {SCHEMA})"
        raise UserError(message, where=where, remedy="upgrade, or use another store")
    for name in names:
        if name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise CorruptArtifact(f"{name!r}: leaves the artifact", where=where)
    return manifest
