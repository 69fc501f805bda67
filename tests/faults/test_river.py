"""Every stage of the quickstart under SIGKILL: of a process of its own, then of the driver.

What comes out in the end is, byte for byte, what an undisturbed run makes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.execution.run import Run
from pipeline.storage.store import Store

pytestmark = [pytest.mark.long, pytest.mark.timeout(30 * 60)]

CONFIG = Path(__file__).with_name("river.yaml")
HEADWATER = Path(sys.executable).parent / "headwater"
ON_RANKS = {"pretrain", "sft", "reward", "ppo", "augment", "evaluate"}


def headwater(store: Path, *words: str) -> subprocess.Popen[bytes]:
    """The command, as a terminal starts it, with its words in a file beside the store."""
    environment = {**os.environ, "HEADWATER_STORE": str(store)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with store.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [HEADWATER, *words], env=environment, stdout=log, stderr=log, start_new_session=True
        )


def digests(store: Path) -> dict[str, str]:
    """The content that each stage of the newest run made."""
    run = Run.find(Store(store))
    found = {s.name: run.store.latest_readable(s.uses, s.fingerprint) for s in run.status().stages}
    return {name: artifact.digest for name, artifact in found.items() if artifact}


class Killer:
    """Kills, in each stage, one of its processes and, in its next attempt, the driver."""

    def __init__(self, store: Path, seed: int) -> None:
        self.store = store
        self.chance = random.Random(seed)
        self.killed: dict[str, list[str]] = {}

    def watch(self, driver: subprocess.Popen[bytes]) -> bool:
        """Follow a driver until it ends or was killed here; says whether it was."""
        while driver.poll() is None:
            for stage in self._working():
                done = self.killed.setdefault(stage["name"], [])
                if "process" not in done:
                    if victim := self._process(driver, stage):
                        done.append("process")
                        victim.kill()
                elif "driver" not in done and self._process(driver, stage):
                    done.append("driver")
                    driver.kill()
                    driver.wait()
                    return True
            time.sleep(0.02)
        return False

    def _working(self) -> list[dict[str, Any]]:
        with suppress(Exception):  # there is no run yet
            stages = Run.find(Store(self.store)).status().stages
            return [
                {"name": s.name, "uses": s.uses, "attempt": s.attempts}
                for s in stages
                if s.state == "running"
            ]
        return []

    def _process(
        self, driver: subprocess.Popen[bytes], stage: dict[str, Any]
    ) -> psutil.Process | None:
        """One of the stage's processes, some random time into its work."""
        own = "ray::RankActor" if stage["uses"] in ON_RANKS else f"ray::{stage['name']}-"
        if not any(self._called(driver, own)):
            return None
        time.sleep(self.chance.uniform(0.0, 4.0 if stage["uses"] in ON_RANKS else 0.5))
        return next(iter(self._called(driver, own)), None)

    @staticmethod
    def _called(driver: subprocess.Popen[bytes], name: str) -> list[psutil.Process]:
        found = []
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(driver.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    if " ".join(process.cmdline()).startswith(name):
                        found.append(process)
        return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path


def test_a_run_that_is_killed_in_every_stage_makes_the_same_bytes(place: Path) -> None:
    calm, rough = place / "calm", place / "rough"
    assert headwater(calm, "run", str(CONFIG)).wait() == 0, calm.with_suffix(".log").read_text()
    seed = random.randrange(1000)
    print("seed", seed)
    killer = Killer(rough, seed)
    driver = headwater(rough, "run", str(CONFIG))
    try:
        while killer.watch(driver):
            driver = headwater(rough, "resume", "latest")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
    print(json.dumps(killer.killed))
    assert driver.returncode == 0, rough.with_suffix(".log").read_text()
    assert digests(rough) == digests(calm)
    assert len(digests(calm)) == 13
    assert headwater(rough, "verify", "--all").wait() == 0
    # Short stages may end before the blow falls; most do not.
    assert sum(len(found) for found in killer.killed.values()) >= 20, killer.killed
