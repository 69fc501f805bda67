"""At most one process per stage: a process whose driver died is killed by its successor."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.atomic_io import read_json, write_atomic
from pipeline.storage.lease import machine_id, process_start_time

_KILL_TIMEOUT = 10.0  # seconds until a killed process must be gone


def kill_orphaned_predecessor(work: Path) -> None:
    """Kill the process of the attempt before this one if it is still alive on this machine.

    The lease belongs to this run, so a process that still writes here is an orphan.
    """
    mark, me = work / "process.json", os.getpid()
    before: dict[str, Any] = read_json(mark, {})
    with suppress(ValueError, KeyError):
        pid, born = int(before["pid"]), str(before["born"])
        here = before["node"] == machine_id() != "" and pid != me
        deadline = time.monotonic() + _KILL_TIMEOUT
        while here and born and process_start_time(pid) == born and time.monotonic() < deadline:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
    process = {"node": machine_id(), "pid": me, "born": process_start_time(me)}
    write_atomic(mark, json.dumps(process), durable=False)
