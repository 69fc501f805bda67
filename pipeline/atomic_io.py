"""Crash-safe file I/O: atomic writes, durable appends, locks.

No other module may call rename or replace: text files go through `write_atomic`, logs through
`append_line`, folders through `move_folder` (and artifacts through `artifact.publish`). An I/O
error is a `Failure`; it does not mean that the file is absent.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pipeline.errors import Failure

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_FOUND = (FileNotFoundError, NotADirectoryError)  # only these mean that something is absent
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
T = TypeVar("T")


def write_atomic(path: Path, data: bytes | str, durable: bool = True) -> None:
    """Replace a file so that readers see the old bytes or the new ones, never a part of them.

    Args:
        path: the file; its folder exists.
        data: text is written as UTF-8.
        durable: wait for the disk. False for data that can be regenerated.

    Raises:
        Failure: the disk is full or the write fails; the old file is untouched.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    with disk_errors(path, len(content)):
        try:
            with temporary.open("wb", buffering=0) as file:
                _write_all(file.fileno(), content, durable)
            os.replace(temporary, path)  # noqa: PTH105
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
            raise
        if durable:
            fsync_path(path.parent)


def append_line(path: Path, line: str | Callable[[], str]) -> int:
    """Append a line durably; a torn last line (a kill, a full disk) is cut off first.

    Several processes append one after another. A `line` that depends on those before it is a
    function, which is called under the lock.

    Returns:
        The file's size in bytes afterwards.

    Raises:
        Failure: the disk is full or the write fails; the lines before are untouched.
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
    """Open a file to append under a lock that excludes other appenders inside the block."""
    with ExitStack() as undo:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        undo.callback(os.close, descriptor)
        _flock(descriptor, fcntl.LOCK_EX)
        undo.callback(_flock, descriptor, fcntl.LOCK_UN)  # a fork may hold the descriptor too
        yield descriptor


def _flock(descriptor: int, operation: int) -> None:
    """Lock or unlock a file, on file systems that have locks."""
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def complete_lines_size(path: Path) -> int:
    """Return the size in bytes of the complete lines of a file; 0 if there is no file."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            if (found := file.read(end - start).rfind(b"\n")) >= 0:
                return start + found + 1
            end = start
    return 0


def read_lines(path: Path) -> list[bytes]:
    """Return the complete lines of a log; none if there is no file.

    Raises:
        Failure: the file cannot be read.
    """
    with disk_errors(path, to="read"):
        try:
            return path.read_bytes().split(b"\n")[:-1]
        except NOT_FOUND:
            return []


def read_json(path: Path, default: T) -> T:
    """Return the content of a JSON file; the default if it is missing or damaged.

    A power cut may damage what was not written durably: it is then of another type or not JSON.

    Raises:
        Failure: the file cannot be read.
    """
    with disk_errors(path, to="read"):
        try:
            data = json.loads(path.read_bytes())
        except (*NOT_FOUND, ValueError, RecursionError):
            return default
    return data if isinstance(data, type(default)) else default


def list_folder(folder: Path) -> list[Path]:
    """Return the content of a folder, sorted; empty if there is no folder.

    Raises:
        Failure: the folder cannot be read.
    """
    with disk_errors(folder, to="read"):
        try:
            return sorted(folder.iterdir())
        except NOT_FOUND:
            return []


def list_subfolders(folder: Path) -> Iterator[Path]:
    """Yield the entries of every subfolder."""
    return (path for child in list_folder(folder) for path in list_folder(child))


def make_folder(folder: Path) -> None:
    """Create a folder and its parents durably.

    Raises:
        Failure: the disk is full or the folder cannot be made.
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
        FileExistsError: the target exists.
        FileNotFoundError: another process moved the source.
        Failure: the rename fails.
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
    """Turn an I/O error into a `Failure` that names the path and the remedy.

    `FileExistsError` and `FileNotFoundError` pass.

    Args:
        path: the path in the message if the error has none.
        needed: bytes to be written.
        to: the operation, read or write.
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
    """Build the error of a full disk: which one, the bytes needed and free."""
    disk = Path(os.path.abspath(path))  # noqa: PTH100
    while not (disk.is_dir() and os.path.ismount(disk)) and disk != disk.parent:
        disk = disk.parent
    stats = os.statvfs(disk)
    free = stats.f_bavail * stats.f_frsize
    want = f"{format_bytes(needed)} needed, " if needed else ""
    return Failure(
        f"the disk at {disk} is full: {want}{format_bytes(free)} free",
        where=str(path),
        remedy="free some space (`headwater gc` lists what can go), then `headwater resume`",
    )


def format_bytes(size: float) -> str:
    """Format a number of bytes: 512 B, 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _write_all(descriptor: int, content: bytes, durable: bool) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    if durable:
        os.fsync(descriptor)
