"""Bytes on a disk that may be full, slow, shared or cut off at any instant.

Nothing else in the project may call rename or replace: text files go through `write_atomic`,
logs through `append_line`, folders through `move` (and artifacts through `artifact.publish`).
What a disk refuses is a `Failure`; it says nothing of what lies there.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pipeline.errors import Failure

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_FOUND = (FileNotFoundError, NotADirectoryError)  # only these say that something is not there
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
T = TypeVar("T")


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
            _write(beside, content, durable)
            os.replace(beside, path)  # noqa: PTH105
        except BaseException:
            with suppress(OSError):
                os.unlink(beside)  # noqa: PTH108
            raise
        if durable:
            fsync_path(path.parent)


def append_line(path: Path, line: str | Callable[[], str]) -> int:
    """Append a line durably; a torn last line (a kill, a full disk) is cut off first.

    Of several processes one appends at a time. A `line` that depends on those before it is a
    function, which is called when it is its turn.

    Returns:
        The file's size in bytes afterwards.

    Raises:
        Failure: the disk is full or refuses; the lines that were there are untouched.
    """
    with disk_errors(path), _exclusively_locked(path) as descriptor:
        content = (line if isinstance(line, str) else line()).encode() + b"\n"
        whole = complete_lines_size(path)
        if os.fstat(descriptor).st_size != whole:
            os.ftruncate(descriptor, whole)
        try:
            _write_all(descriptor, content, durable=True)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(descriptor, whole)
            raise
        if not whole:
            fsync_path(path.parent)
    return whole + len(content)


@contextmanager
def _exclusively_locked(path: Path) -> Iterator[int]:
    """A file, open to append, that all others who would append wait for inside the block."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        _flock(descriptor, fcntl.LOCK_EX)
        try:
            yield descriptor
        finally:
            _flock(descriptor, fcntl.LOCK_UN)  # closing is not enough if a fork holds it too
    finally:
        os.close(descriptor)


def _flock(descriptor: int, operation: int) -> None:
    """Lock a file, on file systems that have locks."""
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def complete_lines_size(path: Path) -> int:
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


def read_lines(path: Path) -> list[bytes]:
    """The lines of a log that are ended; none if there is no file.

    Raises:
        Failure: the disk does not let it be read.
    """
    with disk_errors(path, to="read"):
        try:
            return path.read_bytes().split(b"\n")[:-1]
        except NOT_FOUND:
            return []


def read_json(path: Path, default: T) -> T:
    """What a JSON file holds; the default if there is none, or if what it holds was spoilt.

    A power cut may spoil what was not written durably; it is then of another type or no JSON.

    Raises:
        Failure: the disk does not let it be read, which says nothing of what it holds.
    """
    with disk_errors(path, to="read"):
        try:
            data = json.loads(path.read_bytes())
        except (*NOT_FOUND, ValueError, RecursionError):
            return default
    return data if isinstance(data, type(default)) else default


def list_folder(folder: Path) -> list[Path]:
    """What is in a folder, sorted; nothing if there is no folder.

    Raises:
        Failure: the disk does not let it be read.
    """
    with disk_errors(folder, to="read"):
        try:
            return sorted(folder.iterdir())
        except NOT_FOUND:
            return []


def list_subfolders(folder: Path) -> Iterator[Path]:
    """What is in the folders of a folder."""
    return (path for child in list_folder(folder) for path in list_folder(child))


def make_folder(folder: Path) -> None:
    """Create a folder and its parents durably.

    Raises:
        Failure: the disk is full or refuses.
    """
    with disk_errors(folder):
        if folder.is_dir():
            return
        make_folder(folder.parent)
        with suppress(FileExistsError):
            os.mkdir(folder)  # noqa: PTH102
        fsync_path(folder.parent)


def move_folder(source: Path, target: Path) -> None:
    """Rename a folder durably; the target's parent is made.

    Raises:
        FileExistsError: there is something at the target.
        FileNotFoundError: somebody else moved the source.
        Failure: the disk refuses.
    """
    make_folder(target.parent)
    with disk_errors(target):
        if os.path.lexists(target):  # a file would be replaced; between folders the rename decides
            raise FileExistsError(errno.EEXIST, "already there", str(target))
        try:
            os.rename(source, target)  # noqa: PTH104
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise FileExistsError(errno.EEXIST, "already there", str(target)) from error
            raise
        fsync_path(target.parent)
        fsync_path(source.parent)


def fsync_path(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(path: Path, needed: int = 0, to: str = "write") -> Iterator[None]:
    """Turn what a disk refuses into a `Failure` that names the disk and the remedy.

    What is there already (`FileExistsError`) or is not (`FileNotFoundError`) passes.

    Args:
        path: what is named where the error names nothing.
        needed: bytes that are to be written.
        to: what was tried: read or write.
    """
    try:
        yield
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as error:
        if error.errno in DISK_FULL:
            raise disk_full_error(path, needed) from error
        raise Failure(
            f"cannot {to}: {error.strerror or error}",
            where=str(error.filename or path),
            remedy="check the disk and the permissions, then `headwater resume`",
        ) from error


def disk_full_error(path: Path, needed: int = 0) -> Failure:
    """The error of a full disk: which one, what is needed, what is free."""
    disk = Path(os.path.abspath(path))  # noqa: PTH100
    while not (disk.is_dir() and os.path.ismount(disk)) and disk != disk.parent:
        disk = disk.parent
    room = os.statvfs(disk)
    free = room.f_bavail * room.f_frsize
    want = f"{format_bytes(needed)} needed, " if needed else ""
    return Failure(
        f"the disk at {disk} is full: {want}{format_bytes(free)} free",
        where=str(path),
        remedy="free some space (`headwater gc` says what can go), then `headwater resume`",
    )


def format_bytes(size: float) -> str:
    """Bytes as people say them: 512 B, 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _write(path: Path, content: bytes, durable: bool) -> None:
    """Write a new file through one descriptor, which children do not inherit."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_TRUNC, 0o644)
    try:
        _write_all(descriptor, content, durable)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes, durable: bool) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    if durable:
        os.fsync(descriptor)
