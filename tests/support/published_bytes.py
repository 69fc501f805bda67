"""The content of a folder as it would be published."""

from __future__ import annotations

from pathlib import Path


def published_bytes(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by path, without those half-written by a killed process, which
    `artifact.publish` removes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if not (path.name.startswith(".") and path.name.endswith(".new"))
    }
