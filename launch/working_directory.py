"""Where the relative paths of a run lead: the folder in which `run` or `submit` was typed.

`resume` may be typed anywhere. A job begins in its copy of the tracked files and stays there if
that holds all that the pipeline file names; what only the folder at home has (data that git does
not track) is looked for there, if the cluster sees that folder under the same path.
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

_SHIPPED = "_ray_pkg_"  # how the folders begin in which a head unpacks what it was sent
_LEFT: list[Path] = []


@contextmanager
def at_home(run: Run) -> Iterator[None]:
    """Work in the run's folder inside the block, as if the command had been typed there."""
    here = Path.cwd()
    _LEFT.append(here)
    os.chdir(_home_of(run, here))
    try:
        yield
    finally:
        os.chdir(_LEFT.pop())


def typed_in() -> Path:
    """The folder in which this command was typed, wherever it works now."""
    return _LEFT[0] if _LEFT else Path.cwd()


def _home_of(run: Run, here: Path) -> Path:
    home = next((Path(event["root"]) for event in run.events() if event.get("root")), here)
    if not home.is_dir():
        return here
    shipped = here.name.startswith(_SHIPPED)
    return here if shipped and not any(_only_there(run.resolved(), home)) else home


def _only_there(value: Any, home: Path) -> Iterator[str]:
    """What a pipeline file names that lies in a folder, but not in the one where we are."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _only_there(item, home)
    elif isinstance(value, str) and not _lies_in(Path.cwd(), value) and _lies_in(home, value):
        yield value


def _lies_in(folder: Path, name: str) -> bool:
    """Whether a text names files there; `Path.glob` would not take just any text."""
    return bool(glob.glob(name, root_dir=folder))  # noqa: PTH207
