"""A package outside the tree: one module, and the metadata that names it as a plugin."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


def write(folder: Path, module: str, source: str) -> None:
    """Write the module and its metadata into a folder that belongs on PYTHONPATH."""
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[headwater.plugins]\n{module} = {module}\n")


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, source: str) -> None:
    """Write a module and make it importable in this process, as an installed package is.

    For what is read when a stage module is imported (unions of sections), use `write` and a process
    of its own with the folder on PYTHONPATH.
    """
    write(folder, module, source)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, module, raising=False)
