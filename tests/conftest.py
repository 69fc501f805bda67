"""What all tests share: stages without machine learning, and one Ray for the whole session."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.stage import Stage, stage_packages

TOYS = Path(__file__).parent / "pipeline" / "toys"


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The stages of `toybox`, found as those of any installed package are."""
    before = dict(Stage.registry)
    monkeypatch.syspath_prepend(str(TOYS))
    stage_packages.cache_clear()
    yield TOYS
    stage_packages.cache_clear()
    Stage.registry.clear()
    Stage.registry.update(before)
    for module in [name for name in sys.modules if name.partition(".")[0] == "toybox"]:
        del sys.modules[module]


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Any]:
    """Ray, started once for all tests that need it: two CPUs, nothing outside this process.

    Its workers find `toybox` too.
    """
    import ray

    from pipeline.rayside import fresh_folder, start_embedded

    paths = [str(TOYS), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        folder = _started(fresh_folder, start_embedded)
    yield ray
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def _started(fresh_folder: Any, start: Any) -> Path:
    """A slow machine misses Ray's own 30 s now and then."""
    import ray

    from pipeline.production import Resources

    for attempt in (1, 2, 3):
        folder: Path = fresh_folder()
        try:
            start(folder, Resources(2))
            return folder
        except Exception:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
            if attempt == 3:
                raise
            time.sleep(attempt)
    raise AssertionError("unreachable")
