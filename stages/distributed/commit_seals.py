"""Seals of commit files: digests by which a later reader finds that a file changed on disk.

    000007         commit file of a shard
    000007.seal    {"000007": sha256, …} of the commit and of the other files of its shard, by path
                   relative to the folder; written last

A commit counts as done only with a seal that its files match: a flipped bit, a file that a power
cut left incomplete, or a kill between the two costs one shard, which is produced again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pipeline.atomic_io import NOT_FOUND, disk_errors, read_json, write_atomic
from pipeline.storage.artifact import hash_file


def write_seal(commit: Path, others: Iterable[Path] = ()) -> None:
    """Seal a commit file and the other files of its shard as they are now."""
    files = (commit, *others)
    digests = {os.path.relpath(file, commit.parent): hash_file(file) for file in files}
    write_atomic(seal_of(commit), json.dumps(digests, sort_keys=True), durable=False)


def is_intact(commit: Path) -> bool:
    """Return whether a commit and the files of its seal have the bytes that were sealed; if not,
    remove commit and seal.

    Raises:
        Failure: a file cannot be read.
    """
    digests: dict[str, str] = read_json(seal_of(commit), {})
    with disk_errors(commit, to="read"):
        try:
            if commit.name in digests and all(
                hash_file(commit.parent / name) == digest for name, digest in digests.items()
            ):
                return True
        except NOT_FOUND:
            pass
        for file in (seal_of(commit), commit):
            file.unlink(missing_ok=True)
    return False


def link_commit(commit: Path, folder: Path) -> None:
    """Give a commit and its seal a second name in a folder, if possible; deleting one keeps the
    other. The seal is linked last."""
    for file in (commit, seal_of(commit)):
        with suppress(FileNotFoundError, FileExistsError, PermissionError):
            os.link(file, folder / file.name)


def seal_of(commit: Path) -> Path:
    """Return the path of a commit's seal."""
    return commit.with_name(f"{commit.name}.seal")
