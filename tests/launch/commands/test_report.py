"""`report`."""

from __future__ import annotations

from pathlib import Path

from command_calls import Call

from pipeline.execution.run import Run


def test_report(run: Run, call: Call) -> None:
    page = Path(call("report").stdout.strip())
    assert page == run.folder / "report.html"
    assert run.id in page.read_text()
