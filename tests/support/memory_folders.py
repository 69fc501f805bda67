"""Folders in memory, for tests that sync thousands of small files: nobody waits for a disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toy_runs import until

MEMORY = Path("/dev/shm")
ENOUGH = 256 * 1024**2  # bytes: a container may have less, and then the disk must do


class Folders:
    """New folders under one root, as `tmp_path_factory` makes them."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def mktemp(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._root))


@contextmanager
def folders_in_memory() -> Iterator[Folders]:
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ENOUGH
    root = Path(tempfile.mkdtemp(prefix="headwater-", dir=MEMORY if roomy else None)).resolve()
    try:
        yield Folders(root)
    finally:
        until(lambda: _removed(root))


def _removed(root: Path) -> bool:
    """False while a thread that a test let go still writes there."""
    shutil.rmtree(root, ignore_errors=True)
    return not root.exists()
