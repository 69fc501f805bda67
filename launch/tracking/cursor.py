"""The mirror's cursor, `runs/<id>/mlflow.json`: which parts of a run were sent to MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.tracking.mlflow_client import own_uri

if TYPE_CHECKING:
    from pipeline.execution.run import Run

CURSOR = "mlflow.json"


def read_cursor(run: Run) -> dict[str, Any]:
    """Return the cursor of a run; empty if it is missing or unreadable."""
    try:
        return dict(json.loads((run.folder / CURSOR).read_text()))
    except (OSError, ValueError):
        return {}


def unsynced_reason(run: Run) -> str:
    """Return why MLflow lacks part of a run; empty if it lacks nothing."""
    cursor, events = read_cursor(run), run.events()
    if not events or cursor.get("seq") == events[-1]["seq"]:
        return ""
    return str(cursor.get("problem") or "there was not enough time to send it")


def recorded_uri(run: Run) -> str:
    """Return the address in a run's cursor, without its password; empty without a cursor. The
    database of a store that has moved since is the one where the store is now."""
    uri = str(read_cursor(run).get("uri", ""))
    events = run.events() if uri else []
    before = Path(str(events[0].get("store") or run.store.root)) if events else run.store.root
    return own_uri(run.store.root) if uri == own_uri(before) else uri


def mirrored_uri(run: Run) -> str | None:
    """Return the address that a run is mirrored to; None if the run is not mirrored or the
    password is not known."""
    uri = recorded_uri(run)
    return uri if read_cursor(run).get("parent") and "***" not in uri else None
