"""Warnings of the stages of a run: what they left out, each with its remedy.

observed/warnings.json    [{"message", "remedy"}], written by `stages.curation.left_out`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from launch.ui import console
from pipeline.atomic_io import read_json
from pipeline.storage.artifact import OBSERVED

if TYPE_CHECKING:
    from pipeline.execution.run import Run
    from pipeline.status import RunStatus, StageStatus
    from pipeline.storage.store import Store


def print_warnings(run: Run, status: RunStatus) -> None:
    """Print the warnings of the stages, each with its remedy."""
    for stage in status.stages:
        for warning in stage_warnings(run.store, stage):
            message = f"warning: {stage.name}: {warning['message']}"
            console.echo(message, "yellow", stderr=True)
            console.echo(f"         {warning['remedy']}", stderr=True)


def stage_warnings(store: Store, stage: StageStatus) -> list[dict[str, str]]:
    """Return what a finished stage warns about: `message` and `remedy`; damaged ones are left
    out."""
    found = store.latest_readable(stage.uses, stage.fingerprint) if stage.path else None
    none: list[Any] = []
    listed = read_json(found.path / OBSERVED / "warnings.json", none) if found else none
    known = (w for w in listed if isinstance(w, dict)) if isinstance(listed, list) else none
    return [w for w in known if all(isinstance(w.get(key), str) for key in ("message", "remedy"))]
