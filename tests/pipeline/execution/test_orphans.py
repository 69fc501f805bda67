"""The process of an attempt whose driver died is killed by the next attempt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.execution.orphans import kill_orphaned_predecessor
from pipeline.storage.lease import machine_id, process_start_time


@pytest.fixture
def orphan() -> object:
    process = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def mark(root: Path, **changed: object) -> None:
    (root / "process.json").write_text(json.dumps(changed))


def test_the_process_of_the_previous_attempt_is_killed(
    tmp_path: Path, orphan: subprocess.Popen
) -> None:
    born = process_start_time(orphan.pid)
    mark(tmp_path, node=machine_id(), pid=orphan.pid, born=born)
    kill_orphaned_predecessor(tmp_path)
    assert process_start_time(orphan.pid) == ""
    assert orphan.wait(5) == -9


@pytest.mark.parametrize(
    "other",
    [{"node": "elsewhere"}, {"born": "1"}, {"born": ""}, {"pid": os.getpid()}, {"pid": 2**22 + 1}],
)
def test_other_processes_are_not_killed(
    tmp_path: Path, orphan: subprocess.Popen, other: dict[str, Any]
) -> None:
    born = process_start_time(int(other.get("pid", orphan.pid)))
    mark(tmp_path, **{"node": machine_id(), "pid": orphan.pid, "born": born, **other})
    kill_orphaned_predecessor(tmp_path)
    assert orphan.poll() is None


def test_a_dead_predecessor_is_ignored(tmp_path: Path, orphan: subprocess.Popen) -> None:
    mark(tmp_path, node=machine_id(), pid=orphan.pid, born=process_start_time(orphan.pid))
    orphan.kill()
    orphan.wait()
    kill_orphaned_predecessor(tmp_path)


def test_the_own_process_is_recorded(tmp_path: Path) -> None:
    kill_orphaned_predecessor(tmp_path)
    recorded = json.loads((tmp_path / "process.json").read_text())
    assert recorded == {
        "node": machine_id(),
        "pid": os.getpid(),
        "born": process_start_time(os.getpid()),
    }
