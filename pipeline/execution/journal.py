"""The append-only journal of a run: the one record of what happened in it.

    {"seq", "time", "event", …}    one line per event of <store>/runs/<run-id>/journal.jsonl

A journal has one writer at a time, the driver, which holds the run's lease. Status is derived from
the events on demand (`pipeline.status`) and is stored nowhere.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.atomic_io import append_line, read_lines
from pipeline.redaction import redact
from pipeline.status import Event, format_timestamp
from pipeline.storage.lease import Lease


class Journal:
    """The events of a run, oldest first."""

    def __init__(self, path: Path, secret_names: Callable[[], frozenset[str]]) -> None:
        self.path = path
        self.lease: Lease | None = None
        """Checked before each event, so that a driver that lost the run cannot write."""
        self._secret_names = secret_names
        self._lock = threading.Lock()
        self._tail = (-1, -1)  # size in bytes after our last append, and its seq

    def append(self, event: str, **fields: Any) -> Event:
        """Write one event durably; return it with its `seq` and `time`.

        Values of secrets that the pipeline refers to are replaced by their names.

        Raises:
            LeaseLost: this process was the driver, and another one took over.
            Failure: the disk is full.
        """
        line: Event = {}

        def render() -> str:
            size, seq = self._tail
            if self.path.stat().st_size != size:  # another process wrote to it
                seq = max((event["seq"] for event in self.events()), default=0)
            raw = {"seq": seq + 1, "time": format_timestamp(time.time()), "event": event, **fields}
            line.update(to_plain(raw, self._secret_names()))
            return json.dumps(line, ensure_ascii=False)

        with self._lock:
            if self.lease:
                self.lease.check()
            self._tail = (append_line(self.path, render), line["seq"])
        return line

    def events(self) -> list[Event]:
        """Return every event in order; a torn or damaged line is left out."""
        events = []
        for line in read_lines(self.path):
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event and type(event.get("seq")) is int:
                    events.append(event)
        return events


def to_plain(value: Any, secret_names: frozenset[str] = frozenset()) -> Any:
    """Convert to JSON's own types, with the values of secrets replaced by their names."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, secret_names) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(item, secret_names) for item in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    return redact(str(value), secret_names)
