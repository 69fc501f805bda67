"""The one real try of a model before it is promoted."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from launch.promotion import smoke_test


def test_ctrl_c_in_a_terminal_does_not_reach_the_process_that_tries_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed by it, the model would be refused for a fault that it does not have."""
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\ncut -d " " -f 5 "/proc/$$/stat" >&2\nexit 1\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(RuntimeError) as caught:
        smoke_test(tmp_path)
    assert int(str(caught.value)) != os.getpgrp()
