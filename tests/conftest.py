"""What all tests share: stages without machine learning, and one Ray for the whole session."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from declared_metrics import declared_metrics
from hypothesis import settings

from pipeline.plugins import stage_packages
from pipeline.stage import Stage

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every
# command that they start; the tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")

TOYS = Path(__file__).parent / "support" / "toys"


@pytest.fixture(scope="session", autouse=True)
def stages_report_what_they_declare() -> Iterator[None]:
    """Gates are checked against declared metrics, so that no stage may report another one."""
    with declared_metrics():
        yield


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

    Its workers find `toybox` and the modules of `support` too.
    """
    import ray

    from launch.ray_launcher import EmbeddedRay
    from pipeline.execution.resources import Resources

    paths = [str(TOYS), str(TOYS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        # No machine can join a Ray that is bound to loopback, and one test needs a second one.
        patch.setattr("launch.ray_launcher.bind_to_loopback", lambda: None)
        embedded = EmbeddedRay(Resources(2))
    yield ray
    embedded.close()
