"""Where an artifact came from: the commit of the code, and the packages that decide its bytes."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("numpy", "torch", "deepspeed", "ray", "transformers", "tokenizers", "pyarrow")


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
