"""Files of a folder or glob: those that can be read, and the number of the others by reason.

Folders that hold no data by convention are not entered: hidden ones (`.git`, `.ipynb_checkpoints`),
those of tools (`__MACOSX`, `__pycache__`, `_delta_log`, `_temporary`), and checkpoints of training.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from pipeline.errors import InputError

_NO_DATA = re.compile(r"\..*|__MACOSX|__pycache__|_delta_log|_temporary|checkpoints?(-\d+)?")

LeftOut = Counter[str]
"""Number of files and folders that are not read, by reason."""


def list_folder(root: Path, is_readable: Callable[[str], bool], left_out: LeftOut) -> list[Path]:
    """Return the readable files below a folder, in order.

    Args:
        root: the folder.
        is_readable: true for the name of a file that can be read.
        left_out: counts the others.

    Raises:
        InputError: a folder cannot be read.
    """

    def raise_error(error: OSError) -> None:
        raise InputError(
            f"cannot read a folder of the source: {error.strerror}",
            where=error.filename,
            remedy="check its permissions",
        ) from error

    found = []
    for folder, folders, names in os.walk(root, onerror=raise_error):
        entered = []
        for name in folders:
            if (Path(folder) / name).is_symlink():
                left_out["links to folders"] += 1
            elif _NO_DATA.fullmatch(name):
                left_out[f"folders named {name}"] += 1
            else:
                entered.append(name)
        folders[:] = entered
        found += [Path(folder) / name for name in names]
    return sorted(_readable_files(found, is_readable, left_out))


def list_glob(
    root: Path, pattern: str, is_readable: Callable[[str], bool], left_out: LeftOut
) -> list[Path]:
    """Return the readable files that a pattern matches below a folder, in order."""
    found = []
    for path in root.glob(pattern):
        if path.is_dir():
            if path.is_symlink():
                left_out["links to folders"] += 1
            elif "**" not in pattern:
                left_out["folders that a pattern matches"] += 1
        elif not is_within_ignored(path.relative_to(root).as_posix(), left_out):
            found.append(path)
    return sorted(_readable_files(found, is_readable, left_out))


def is_within_ignored(place: str, left_out: LeftOut) -> bool:
    """Return whether a file lies in a folder that is not entered, and count it."""
    ignored = next(filter(_NO_DATA.fullmatch, PurePosixPath(place).parts[:-1]), None)
    if ignored:
        left_out[f"files in folders named {ignored}"] += 1
    return ignored is not None


def _readable_files(
    paths: Iterable[Path], is_readable: Callable[[str], bool], left_out: LeftOut
) -> Iterator[Path]:
    """Yield the paths that are readable files, and count the others."""
    for path in paths:
        if reason := unread_reason(path.name, is_readable):
            left_out[reason] += 1
        elif not path.is_file():
            left_out["broken links" if path.is_symlink() else "devices and pipes"] += 1
        else:
            yield path


def unread_reason(name: str, is_readable: Callable[[str], bool]) -> str:
    """Return the reason why a file of this name is not read; empty if it is."""
    if name.startswith("."):
        return "hidden files"
    if is_readable(name):
        return ""
    endings = re.search(r"(\.\w{1,12}){1,2}$", name)
    return f"files {endings[0].lower()}" if endings else "files without an ending"


def describe_left_out(left_out: LeftOut) -> str:
    """Return the counts by reason on one line, the largest first."""
    return ", ".join(f"{reason}: {count:,}" for reason, count in left_out.most_common())
