"""Ends a failed command with a message and an exit code, never with a traceback.

An unexpected exception prints one line; its traceback is written next to the run's logs.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import click

from pipeline.errors import HeadwaterError
from pipeline.redaction import redact

_CRASH_LOG_DIRS: list[Path] = []
_SECRET_NAMES: set[str] = set()


def exit_with_error(error: HeadwaterError) -> NoReturn:
    """Print an error and exit with its exit code."""
    from launch.ui.console import print_error

    print_error(error)
    sys.exit(error.exit_code)


def usage_command(error: click.ClickException) -> str:
    """Return the `--help` command line of the command that failed."""
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'headwater'} --help"


def exit_with_crash_log(error: Exception) -> NoReturn:
    """Report an unexpected exception in one line, save its traceback, and exit with 1."""
    from launch.ui.console import echo, suggest_command

    path = _write_traceback(error)
    reason = redact(str(error), _SECRET_NAMES).strip()
    first = (reason or type(error).__name__).splitlines()[0]
    echo(f"error: {type(error).__name__}: {first}", "bold red", stderr=True)
    echo(f"the traceback is in {path}", stderr=True)
    suggest_command("headwater doctor", "checks the environment")
    sys.exit(1)


def _write_traceback(error: Exception) -> Path:
    """Write the traceback to the run's folder, else to the temporary folder; return its path."""
    import tempfile

    text = redact("".join(traceback.format_exception(error)), _SECRET_NAMES)
    name = f"headwater-error-{time.strftime('%Y%m%d-%H%M%S')}.log"
    for folder in [*_CRASH_LOG_DIRS, Path(tempfile.gettempdir())]:
        with suppress(OSError):
            path = folder / name
            path.write_text(text)
            return path
    return Path("(not written: no folder is writable)")


def set_crash_log_dir(folder: Path, secret_names: Iterable[str]) -> None:
    """Write the tracebacks of later crashes to this folder, without these secrets."""
    _CRASH_LOG_DIRS.insert(0, folder)
    _SECRET_NAMES.update(secret_names)


def exit_interrupted() -> NoReturn:
    """Exit after Ctrl-C where no run had started that could be resumed."""
    from launch.ui.console import echo

    echo("interrupted", stderr=True)
    sys.exit(130)
