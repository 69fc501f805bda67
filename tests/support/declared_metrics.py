"""The metrics that stages report, compared with those that they declare, in every test."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from types import FrameType
from typing import Any

import pytest

from pipeline.context import Context
from pipeline.execution.stage_executor import StageExecutor
from pipeline.stage import Stage


def undeclared(stage: Stage, names: Iterable[str]) -> list[str]:
    """Return the names that a stage does not declare; none if it declares nothing."""
    if stage.metrics is None:
        return []
    return [name for name in names if not any(fnmatchcase(name, p) for p in stage.metrics)]


def running_stage(frame: FrameType | None) -> Stage | None:
    """Return the stage whose function is on the stack."""
    by_code = {stage.run.__code__: stage for stage in Stage.registry.values()}  # type: ignore[attr-defined]
    while frame is not None:
        if frame.f_code in by_code:
            return by_code[frame.f_code]
        frame = frame.f_back
    return None


@contextmanager
def declared_metrics() -> Iterator[None]:
    """Fail a test whose stage reports a metric that it does not declare: in this process when it
    reports, in another one when the driver publishes its artifact."""
    report, note = Context.result, StageExecutor._note

    def checked_result(self: Context, **values: Any) -> None:
        report(self, **values)
        if stage := running_stage(sys._getframe(1)):
            found = undeclared(stage, values)
            assert not found, f"{stage.uses} does not declare {found}"

    def checked_note(self: StageExecutor, event: str, **fields: Any) -> None:
        found = undeclared(self.node.stage, fields.get("metrics", ()))
        assert not found, f"{self.node.uses} does not declare {found}"
        note(self, event, **fields)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Context, "result", checked_result)
        patch.setattr(StageExecutor, "_note", checked_note)
        yield
