"""Provenance of an artifact: the versions of Python and of the packages."""

from __future__ import annotations

import platform
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_LIBRARIES = ("numpy", "torch", "deepspeed", "ray", "transformers", "tokenizers", "pyarrow")


@cache
def environment() -> dict[str, Any]:
    """Return {python, packages: {name: version}} of the installed packages, importing none."""
    versions = {}
    for name in ("headwater", *_LIBRARIES):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {"python": platform.python_version(), "packages": versions}
