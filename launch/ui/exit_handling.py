"""How a command ends when something is wrong: words and an exit code, never a traceback.

An error that nobody foresaw prints one line; its traceback goes where the run keeps its logs.
"""

from __future__ import annotations

import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import click

from pipeline.errors import HeadwaterError

_WORKPLACES: list[Path] = []


def end(error: HeadwaterError) -> NoReturn:
    """Say what is wrong and end with its exit code."""
    from launch.ui.console import complain

    complain(error)
    sys.exit(error.exit_code)


def usage(error: click.ClickException) -> str:
    """The command that shows how the failed one is used."""
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'headwater'} --help"


def crash(error: Exception) -> NoReturn:
    """An error that nobody foresaw: one line for people, the traceback where it can be read."""
    from launch.ui.console import advise, say

    where = _write_traceback(error)
    last = (str(error).strip() or type(error).__name__).splitlines()[0]
    say(f"error: {type(error).__name__}: {last}", "bold red", stderr=True)
    say(f"the traceback is in {where}", stderr=True)
    advise("headwater doctor", "checks the environment")
    sys.exit(1)


def _write_traceback(error: Exception) -> Path:
    """In the folder of the run at work, else in the temporary folder."""
    import tempfile

    text = "".join(traceback.format_exception(error))
    name = f"headwater-error-{time.strftime('%Y%m%d-%H%M%S')}.log"
    for folder in [*_WORKPLACES, Path(tempfile.gettempdir())]:
        with suppress(OSError):
            path = folder / name
            path.write_text(text)
            return path
    return Path("(nowhere: no folder is writable)")


def working_in(folder: Path) -> None:
    """From now on a crash leaves its traceback in that folder."""
    _WORKPLACES.insert(0, folder)


def stopped() -> NoReturn:
    """Ctrl-C where nothing had begun that could be resumed."""
    from launch.ui.console import say

    say("stopped", stderr=True)
    sys.exit(130)
