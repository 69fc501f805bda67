"""The append-only journal of a run: the one record of what happened in it.

    {"seq", "time", "event", …, "crc32"}   a line per event of <store>/runs/<run-id>/journal.jsonl

A journal has one writer at a time, the driver, which holds the run's lease. Status is derived from
the events on demand (`pipeline.status`) and is stored nowhere.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.atomic_io import append_line, read_lines
from pipeline.checksum import parse_record, with_checksum
from pipeline.plain_data import to_plain
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
            return json.dumps(with_checksum(line), ensure_ascii=False)

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
                event = parse_record(line)
                if "event" in event and type(event.get("seq")) is int:
                    events.append(event)
        return events
