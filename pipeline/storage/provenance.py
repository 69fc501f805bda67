"""Provenance of an artifact: the commit of the code and the versions of the packages."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("numpy", "torch", "deepspeed", "ray", "transformers", "tokenizers", "pyarrow")


@cache
def code_version() -> dict[str, Any]:
    """Return {commit, dirty} of the running checkout, or of `HEADWATER_COMMIT` in shipped code.

    `HEADWATER_COMMIT` is a commit, followed by `+dirty` if files had changed.
    """
    if shipped := os.environ.get("HEADWATER_COMMIT"):
        return {"commit": shipped.removesuffix("+dirty"), "dirty": shipped.endswith("+dirty")}
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit, "dirty": bool(changed)}


def _git(*arguments: str) -> str | None:
    """Return the output of git in the folder of the code; None without git or a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


@cache
def environment() -> dict[str, Any]:
    """Return {python, packages: {name: version}} of the installed packages, importing none."""
    versions = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {"python": platform.python_version(), "packages": versions}
