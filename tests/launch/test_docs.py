"""Examples and generated pages of the documentation are current."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.spec.spec_checker import load_spec
from stages.text.rules.catalogue import as_markdown

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PIPELINES = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL))
]


def test_there_are_examples() -> None:
    assert PIPELINES


@pytest.mark.parametrize("text", PIPELINES)
def test_documented_pipelines_are_valid(text: str, tmp_path: Path) -> None:
    file = tmp_path / "shown.yaml"
    file.write_text(text)
    assert load_spec(file).nodes


def test_stage_reference_is_current() -> None:
    """Compare with the output of `make docs`.

    A separate process, because other tests register stages in this one.
    """
    ours = [sys.executable, "-m", "launch.cli", "stages", "--markdown"]
    done = subprocess.run(ours, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == (ROOT / "docs" / "stages.md").read_text()


def test_rules_page_is_current() -> None:
    """Compare with the output of `make docs`."""
    assert as_markdown() == (ROOT / "docs" / "rules.md").read_text()
