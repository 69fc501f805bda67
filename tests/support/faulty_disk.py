"""Disks that refuse: for real where that can be had, else the n-th operation."""

from __future__ import annotations

import io
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

Operation = tuple[ModuleType, str]

WRITES: list[Operation] = [
    (os, name)
    for name in (
        *("open", "write", "fsync", "rename", "replace"),
        *("mkdir", "unlink", "rmdir", "truncate", "ftruncate"),
    )
]
READS: list[Operation] = [
    (io, "open"),
    *((os, name) for name in ("open", "stat", "lstat", "scandir", "listdir")),
]


@contextmanager
def fault_at(
    nth: int, fail: Callable[[], None], operations: list[Operation] = WRITES
) -> Iterator[list[str]]:
    """Call `fail` before the n-th file operation; lists what was done."""
    done: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for module, name in operations:
            counted = _counted(getattr(module, name), name, done, nth, fail)
            patch.setattr(module, name, counted)
        yield done


def _counted(
    true: Callable[..., Any], name: str, done: list[str], nth: int, fail: Callable[[], None]
) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        done.append(f"{name} {args[0] if args else '.'}")
        if len(done) == nth:
            fail()
        return true(*args, **kwargs)

    return counted


@contextmanager
def out_of_descriptors() -> Iterator[None]:
    """Nothing can be opened: a real error, which says nothing of what lies on the disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
