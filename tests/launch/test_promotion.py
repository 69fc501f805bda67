"""The smoke test before a promotion."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from launch.promotion import smoke_test


def test_ctrl_c_does_not_reach_the_smoke_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep the smoke test alive: a model must not be refused because of Ctrl-C."""
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\ncut -d " " -f 5 "/proc/$$/stat" >&2\nexit 1\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(RuntimeError) as caught:
        smoke_test(tmp_path)
    assert int(str(caught.value)) != os.getpgrp()
