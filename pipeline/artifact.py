"""The publish primitive: how bytes become an artifact, and how they are trusted afterwards.

An artifact is a folder with a `manifest.json`, which is written last and is the commit: without
it the folder does not exist. The files are written somewhere else, fsynced with their folders,
sealed by the manifest and renamed into place, so that a kill or a power cut at any instant
leaves either the whole artifact or none.

Nothing else in the project may call rename or replace: text files go through `write_atomic`,
logs through `append_line`, folders through `publish` and `move`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import CorruptArtifact, Failure, UserError

SCHEMA = 1
MANIFEST = "manifest.json"
OBSERVED = "observed"  # timings, curves: published, but outside the digest

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TEMPORARY = re.compile(r"\..+\.\d+-\d+\.new")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PACKAGES = ("numpy", "torch", "deepspeed", "ray", "transformers", "tokenizers", "pyarrow")


def check_name(name: str, what: str) -> str:
    """The name, if it is safe as one part of a path.

    Raises:
        UserError: it does not match `[a-z0-9][a-z0-9._-]{0,63}`.
    """
    if not NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name {what}",
            remedy="use 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit",
        )
    return name


# --- writing -----------------------------------------------------------------------------------


def write_atomic(path: Path, data: bytes | str, durable: bool = True) -> None:
    """Replace a file so that readers see the old bytes or the new, never half of them.

    Args:
        path: the file; its folder exists.
        data: text is written as UTF-8.
        durable: wait for the disk; leave it out for what is re-made anyway.

    Raises:
        Failure: the disk is full or refuses; the old file is untouched.
    """
    content = data.encode() if isinstance(data, str) else data
    beside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    with disk_errors(path, len(content)):
        try:
            _write(beside, content, os.O_TRUNC, durable)
            os.replace(beside, path)  # noqa: PTH105
        except BaseException:
            with suppress(OSError):
                os.unlink(beside)  # noqa: PTH108
            raise
        if durable:
            _sync(path.parent)


def append_line(path: Path, line: str) -> int:
    """Append a line durably; a torn last line (a kill, a full disk) is cut off first.

    Returns:
        The file's size in bytes afterwards.

    Raises:
        Failure: the disk is full or refuses; the lines that were there are untouched.
    """
    content = line.encode() + b"\n"
    with disk_errors(path, len(content)):
        created = not path.exists()
        whole = whole_lines(path)
        if not created and path.stat().st_size != whole:
            os.truncate(path, whole)
        try:
            _write(path, content, os.O_APPEND, durable=True)
        except BaseException:
            with suppress(OSError):
                os.truncate(path, whole)
            raise
        if created:
            _sync(path.parent)
    return whole + len(content)


def whole_lines(path: Path) -> int:
    """How many bytes of a file belong to lines that are ended; 0 if there is no file."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            while end > 0:
                start = max(0, end - 65536)
                file.seek(start)
                found = file.read(end - start).rfind(b"\n")
                if found >= 0:
                    return start + found + 1
                end = start
    except FileNotFoundError:
        pass
    return 0


def make_folder(folder: Path) -> None:
    """Create a folder and its parents durably."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with suppress(FileExistsError):
        os.mkdir(folder)  # noqa: PTH102
    _sync(folder.parent)


def move(source: Path, target: Path) -> None:
    """Rename a folder durably; the target's parent is made.

    Raises:
        FileExistsError: there is something at the target.
        FileNotFoundError: somebody else moved the source.
    """
    make_folder(target.parent)
    try:
        os.rename(source, target)  # noqa: PTH104
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, "already there", str(target)) from error
        raise
    _sync(target.parent)
    _sync(source.parent)


@contextmanager
def disk_errors(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn what a disk refuses into a `Failure` that names the disk and the remedy."""
    try:
        yield
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise disk_full(path, needed) from error
        raise Failure(
            f"cannot write: {error.strerror or error}",
            where=str(error.filename or path),
            remedy="check the disk and the permissions, then `headwater resume`",
        ) from error


def disk_full(path: Path, needed: int = 0) -> Failure:
    """The error of a full disk: which one, what is needed, what is free."""
    disk = Path(os.path.abspath(path))  # noqa: PTH100
    while not (disk.is_dir() and os.path.ismount(disk)) and disk != disk.parent:
        disk = disk.parent
    room = os.statvfs(disk)
    free = room.f_bavail * room.f_frsize
    want = f"{readable(needed)} needed, " if needed else ""
    return Failure(
        f"the disk at {disk} is full: {want}{readable(free)} free",
        where=str(path),
        remedy="free some space (`headwater gc` says what can go), then `headwater resume`",
    )


def readable(size: float) -> str:
    """Bytes as people say them: 512 B, 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _write(path: Path, content: bytes, mode: int, durable: bool) -> None:
    """Write all of it through one descriptor, which children do not inherit."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | mode, 0o644)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- artifacts ---------------------------------------------------------------------------------


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
        return [problem for file in self.manifest["files"] if (problem := self._size(file))]

    def verify(self) -> list[str]:
        """Every difference from what was published; reads and hashes all bytes."""
        listed = {file["path"] for file in self.manifest["files"]}
        problems = []
        try:
            found = list_files(self.path)
        except Failure as error:
            found, problems = [], [error.message]
        problems += [
            f"{name}: not in the manifest"
            for name in found
            if name not in listed and not PurePosixPath(name).name.startswith(".")
        ]
        return problems + [
            problem for file in self.manifest["files"] if (problem := self._content(file))
        ]

    def stamp(self) -> str:
        """Changes whenever a file is added, replaced or written to (inode, mtime, size)."""
        state = hashlib.sha256(self.digest.encode())
        for name in [*list_files(self.path), MANIFEST]:
            info = (self.path / name).stat()
            state.update(f"{name}\0{info.st_ino}\0{info.st_mtime_ns}\0{info.st_size}\n".encode())
        return state.hexdigest()

    def _size(self, file: Mapping[str, Any]) -> str:
        try:
            info = os.lstat(self.path / file["path"])
        except OSError:
            return f"{file['path']}: missing"
        if not stat.S_ISREG(info.st_mode):
            return f"{file['path']}: not a regular file"
        if info.st_size != file["size"]:
            return f"{file['path']}: {info.st_size} bytes instead of {file['size']}"
        return ""

    def _content(self, file: Mapping[str, Any]) -> str:
        if problem := self._size(file):
            return problem
        if hash_file(self.path / file["path"]) != file["sha256"]:
            return f"{file['path']}: its bytes changed"
        return ""


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
        files = [_describe(staged, name, known) for name in _tidy(staged)]
        for folder in _folders(staged):
            _sync(folder)
        manifest = {**facts, "schema": SCHEMA, "files": files, "digest": digest_of(files)}
        manifest["seal"] = _seal(manifest)
        write_atomic(staged / MANIFEST, _render(manifest))
        check()
        move(staged, target)
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
    for parent, folders, files in os.walk(folder):
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


def _tidy(staged: Path) -> list[str]:
    """The files to publish; what killed writers left half-written beside them is removed."""
    names = list_files(staged)
    for name in names:
        if _TEMPORARY.fullmatch(PurePosixPath(name).name):
            os.unlink(staged / name)  # noqa: PTH108
    return [name for name in names if not _TEMPORARY.fullmatch(PurePosixPath(name).name)]


def _folders(staged: Path) -> list[Path]:
    """The folder and all below it, the deepest first."""
    return [Path(parent) for parent, _, _ in os.walk(staged, topdown=False)]


def _describe(staged: Path, name: str, known: Mapping[str, str]) -> dict[str, Any]:
    """Sync one file; its entry of the manifest."""
    path = staged / name
    _sync(path)
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
    try:
        manifest = dict(json.loads((folder / MANIFEST).read_bytes()))
        sealed = manifest["seal"] == _seal(manifest)
        schema, names = int(manifest["schema"]), [str(file["path"]) for file in manifest["files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
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


# --- where it came from ------------------------------------------------------------------------


@cache
def code_version() -> dict[str, Any]:
    """{commit, dirty} of the checkout that runs; `HEADWATER_COMMIT` where the code was shipped.

    `HEADWATER_COMMIT` is a commit, with `+dirty` after it if files had changed.
    """
    if shipped := os.environ.get("HEADWATER_COMMIT"):
        return {"commit": shipped.removesuffix("+dirty"), "dirty": shipped.endswith("+dirty")}
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "dirty": bool(changed)}


def _git(*arguments: str) -> str | None:
    """What git says of the code's folder; None without git or a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


@cache
def environment() -> dict[str, Any]:
    """{python, packages: {name: version}} of what decides the bytes; imports nothing."""
    return {"python": platform.python_version(), "packages": dict(_versions())}


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            yield name, version(name)
