"""Calls of commands in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from click.testing import CliRunner, Result

from launch.cli import cli

Call = Callable[..., Result]


def call_command(store: str, *words: str, code: int = 0) -> Result:
    """Call a command with a store and check its exit code."""
    named = [] if words[0] in ("stages", "init", "--help") else ["--store", store]
    done = CliRunner().invoke(cli, [*words, *named], prog_name="headwater")
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done


def parse_json(done: Result) -> Any:
    """Parse what a command printed."""
    return json.loads(done.stdout)
