"""The mirror's cursor, `runs/<id>/mlflow.json`: which parts of a run were sent to MLflow."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

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


def mirrored_uri(run: Run) -> str | None:
    """Return the address that a run is mirrored to; None if the run is not mirrored or the
    password is not known."""
    cursor = read_cursor(run)
    uri = str(cursor.get("uri", ""))
    return uri if cursor.get("parent") and "***" not in uri else None
