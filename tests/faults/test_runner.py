"""What a run survives: its workers, its driver and its terminal being killed under it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from toy_runs import (
    TWO_AND_SUM,
    digests,
    events,
    held,
    holds,
    log,
    make,
    process_of,
    states,
    until,
)

from launch.ray_launcher import RayLauncher
from pipeline.execution.run import Run
from pipeline.execution.runner import execute, exit_code
from pipeline.status import RunStatus
from pipeline.storage.store import Store

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("toys")]

PROGRAM = """
import sys
from launch.ray_launcher import RayLauncher
from pipeline.execution.run import Run
from pipeline.execution.resources import Resources
from pipeline.execution.runner import execute, exit_code
from pipeline.storage.store import Store
run = Run.find(Store(sys.argv[1]), sys.argv[2])
execute(run, RayLauncher(resources=Resources(2)), backoff=0.01)
print(sorted({"torch", "mlflow", "transformers"} & set(sys.modules)))
sys.exit(exit_code(run))
"""
START = 240.0  # seconds for an embedded Ray on a busy machine


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    file = tmp_path / "hold"
    file.touch()
    return file


@pytest.fixture
def undisturbed(tmp_path: Path, ray_session: Any) -> dict[str, str]:
    """The digests of `TWO_AND_SUM` when nothing happens to it."""
    run = make(Store(tmp_path / "undisturbed"), TWO_AND_SUM)
    assert go(run).state == "finished"
    return digests(run)


def go(run: Run) -> RunStatus:
    return execute(run, RayLauncher(), backoff=0.01)


class Driver:
    """A driver in a process of its own, with a Ray of its own, as a terminal starts it."""

    def __init__(self, run: Run, toys: Path, **environment: str) -> None:
        self.run = run
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(run.store.root), run.id],
            env={**os.environ, "PYTHONPATH": str(toys), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.family: list[psutil.Process] = []

    def until_held(self, stage: str = "a") -> None:
        """Wait until a stage holds, and remember every process that belongs to the run."""
        until(lambda: holds(self.run, stage) or self.process.poll() is not None, START)
        assert self.process.poll() is None, self.process.communicate()
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        assert len(self.family) > 3

    def press_ctrl_c(self) -> None:
        """As a terminal does: every process of the foreground group gets it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, seconds: float = START) -> int:
        self.said, self.complained = self.process.communicate(timeout=seconds)
        return self.process.returncode

    def nobody_is_left(self, seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while left := [p for p in self.family if alive(p)]:
            assert time.monotonic() < deadline, [(p, p.cmdline()) for p in left]
            time.sleep(0.05)


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_stage_whose_process_is_killed_goes_on(
    store: Store, hold: Path, undisturbed: dict[str, str]
) -> None:
    run = make(store, held(hold))

    def kill() -> None:
        until(lambda: holds(run, "a"))
        os.kill(process_of(run, "a"), signal.SIGKILL)
        hold.unlink()

    killer = threading.Thread(target=kill)
    killer.start()
    assert go(run).state == "finished"
    killer.join()
    retry = events(run, "stage.retry", "a")[0]
    assert (retry["class"], retry["error"]) == ("worker", "a process died (WorkerCrashedError)")
    assert "begins at step 2" in log(run, "a", 2)
    assert digests(run) == undisturbed


def test_a_stage_that_always_dies_fails_with_its_last_words(store: Store, ray_session: Any) -> None:
    run = make(store, "a: {uses: toy.count, trouble: die, retries: {worker: 1}}")
    assert go(run).state == "failed"
    assert len(events(run, "stage.started")) == 2
    until(lambda: "last words" in log(run, "a", 2))
    assert "headwater logs" in events(run, "stage.failed")[0]["remedy"]
    assert exit_code(run) == 1


def test_a_full_disk_is_named_and_the_store_stays_valid(
    store: Store, undisturbed: dict[str, str]
) -> None:
    run = make(store, TWO_AND_SUM.replace("value: 1", "value: 1, trouble: limit, troubled: 1"))
    assert go(run).state == "failed"
    failed = events(run, "stage.failed")[0]
    assert "is full" in failed["error"]
    assert "free some space" in failed["remedy"]
    assert states(run) == {"a": "failed", "b": "finished", "sum": "skipped"}
    assert [store.verify(artifact) for artifact in store.artifacts()] == [[]]
    assert go(run).state == "finished"
    assert digests(run) == undisturbed


@pytest.fixture
def spot_machine(ray_session: Any, toys: Path) -> Iterator[psutil.Process]:
    """The raylet of a second machine of the session's cluster, with the resource `spot`."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1"]
    address = ray_session.get_runtime_context().gcs_address
    machine = subprocess.Popen(
        [*command, f"--address={address}", '--resources={"spot": 1}'],
        env={**os.environ, "PYTHONPATH": str(toys)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: "spot" in ray_session.cluster_resources(), START)
    family = psutil.Process(machine.pid).children(recursive=True)
    yield next(process for process in family if process.name() == "raylet")
    for process in [p for p in family if alive(p)]:
        process.kill()
    machine.kill()
    machine.wait()


def test_a_machine_that_is_taken_away_costs_no_retry(
    store: Store, spot_machine: psutil.Process
) -> None:
    run = make(store, "a: {uses: toy.fan, spot: true, retries: {worker: 0}}")

    def take_away() -> None:
        until(lambda: holds(run, "a"))
        spot_machine.kill()

    taker = threading.Thread(target=take_away)
    taker.start()
    assert go(run).state == "finished"
    taker.join()
    retry = events(run, "stage.retry")[0]
    assert (retry["class"], retry["error"]) == ("preempted", "the machine it ran on was lost")


def test_a_killed_driver_leaves_nobody_and_is_resumed_to_the_same_bytes(
    store: Store, hold: Path, toys: Path, undisturbed: dict[str, str]
) -> None:
    run = make(store, held(hold, ", deaf: true"))
    driver = Driver(run, toys)
    driver.until_held()
    driver.process.kill()
    driver.end()
    driver.nobody_is_left()
    assert run.status().state == "interrupted"
    hold.unlink()
    assert go(run).state == "finished"
    assert "begins at step 2" in log(run, "a", 2)
    assert digests(run) == undisturbed


def test_ctrl_c_stops_at_a_safe_point(store: Store, hold: Path, toys: Path) -> None:
    run = make(store, held(hold))
    driver = Driver(run, toys, HOME="/nonexistent")
    driver.until_held()
    driver.press_ctrl_c()
    assert driver.end(30) == 130
    assert driver.said == "[]\n"
    assert driver.complained == ""
    driver.nobody_is_left()
    assert states(run)["a"] == "interrupted"
    assert events(run, "stage.interrupted", "a")[0]["at"] == "step 2/4"
    assert "stopped on request" in log(run, "a")
    assert "KeyboardInterrupt" not in log(run, "a")


def test_ctrl_c_twice_stops_now(store: Store, hold: Path, toys: Path) -> None:
    run = make(store, held(hold, ", deaf: true"))
    driver = Driver(run, toys)
    driver.until_held()
    driver.press_ctrl_c()
    until(run.cancel_file.exists)
    driver.press_ctrl_c()
    begun = time.monotonic()
    assert driver.end(30) == 130
    assert time.monotonic() - begun < 15
    driver.nobody_is_left()
    assert run.status().state == "interrupted"


def test_a_raylet_that_dies_is_a_failure_that_resumes(
    store: Store, hold: Path, toys: Path, undisturbed: dict[str, str]
) -> None:
    run = make(store, held(hold))
    driver = Driver(run, toys)
    driver.until_held()
    raylet = next(p for p in driver.family if p.name() == "raylet")
    raylet.kill()
    assert driver.end(60) == 1
    driver.nobody_is_left()
    assert run.status().state == "failed"
    assert "Ray died" in events(run, "run.finished")[0]["error"]
    hold.unlink()
    assert go(run).state == "finished"
    assert digests(run) == undisturbed
