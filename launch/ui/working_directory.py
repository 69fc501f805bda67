"""The directory that relative paths of a run refer to: where `run` or `submit` was invoked.

`resume` may be invoked anywhere. A cluster job starts in its copy of the tracked files and stays
there if that copy holds every path that the pipeline file names. Paths that exist only in the
original directory (data that git does not track) are resolved there, if the cluster sees that
directory under the same path.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.execution.run import Run

_PACKAGE_PREFIX = "_ray_pkg_"  # of the folders into which a Ray head unpacks uploaded code
_PREVIOUS: list[Path] = []


@contextmanager
def in_run_directory(run: Run) -> Iterator[None]:
    """Change to the run's directory inside the block."""
    here = Path.cwd()
    _PREVIOUS.append(here)
    os.chdir(_run_directory(run, here))
    try:
        yield
    finally:
        os.chdir(_PREVIOUS.pop())


def invocation_directory() -> Path:
    """Return the directory in which this command was invoked, wherever it works now."""
    return _PREVIOUS[0] if _PREVIOUS else Path.cwd()


def _run_directory(run: Run, here: Path) -> Path:
    original = next((Path(event["root"]) for event in run.events() if event.get("root")), here)
    if not original.is_dir():
        return here
    in_package = here.name.startswith(_PACKAGE_PREFIX)
    return here if in_package and not any(_missing_here(run.resolved(), original)) else original


def _missing_here(value: Any, original: Path) -> Iterator[str]:
    """Yield the paths in a pipeline file that exist in a directory but not in the current one."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _missing_here(item, original)
    elif (
        isinstance(value, str) and not _exists_in(Path.cwd(), value) and _exists_in(original, value)
    ):
        yield value


def _exists_in(folder: Path, pattern: str) -> bool:
    """Return whether a string names files in a folder; `Path.glob` rejects arbitrary strings."""
    return bool(glob.glob(pattern, root_dir=folder))  # noqa: PTH207
