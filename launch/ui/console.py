"""What people see: tables, figures, colours, and the last lines of an error.

Colours and moving lines are for terminals only, and never with NO_COLOR; a pipe or a log file
gets the same words as plain lines that are not cut off.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.ui.formatting import number
from pipeline.context import escape
from pipeline.errors import HeadwaterError, SpecError

NARROW = 100  # columns under which tables leave out what matters least
PIPED = 200  # columns of a table that no terminal cuts

STYLES = {
    "finished": "green",
    "cached": "cyan",
    "running": "bold yellow",
    "waiting": "yellow",
    "pending": "dim",
    "skipped": "dim",
    "failed": "bold red",
    "refused": "bold red",
    "interrupted": "magenta",
    "cancelled": "magenta",
    "run": "yellow",
    "resume": "magenta",
    "skip": "dim",
}
PROMINENT = (
    "reward_accuracy",
    "accuracy",
    "reward_gain",
    "kl",
    "perplexity",
    "bits_per_byte",
    "augmentation_gain",
    "kept_share",
    "zero_shot",
    "image_to_text_r1",
    "image_to_text_r5",
    "text_to_image_r5",
    "zero_shot_single",
    "linear_probe",
    "documents",
    "train_tokens",
    "pairs",
    "conversations",
    "loss",
)
MARKS = {
    "finished": "✓",
    "cached": "✓",
    "running": "●",
    "waiting": "◌",
    "pending": "·",
    "skipped": "–",
    "failed": "✗",
    "refused": "✗",
    "interrupted": "‖",
    "cancelled": "‖",
    "run": "●",
    "resume": "◐",
    "skip": "–",
}
_RULED = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")


def screen(stderr: bool = False) -> Console:
    """The terminal, the pipe or the file behind standard output."""
    stream = sys.stderr if stderr else sys.stdout
    piped = not stream.isatty()
    width = PIPED if piped and not os.environ.get("COLUMNS") else None
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False, emoji=False)


def say(message: str = "", style: str = "", stderr: bool = False) -> None:
    """Plain text, whatever brackets and control characters it holds; lines are not broken."""
    screen(stderr).print(Text(plain(message), style=style), soft_wrap=True)


def advise(command: str, why: str = "") -> None:
    """The line to type next, on standard error."""
    text = Text.assemble(("next: ", "bold"), (command, "cyan"), (f"   {why}" if why else "", "dim"))
    screen(stderr=True).print(text, soft_wrap=True)


def complain(error: HeadwaterError) -> None:
    """An error as people read it: what, where, what to do."""
    console = screen(stderr=True)
    console.print(Text("error: ", style="bold red") + Text(plain(str(error))), soft_wrap=True)
    if remedy := error.remedy or _mend(error):
        console.print(Text("next: ", style="bold") + Text(plain(remedy), "cyan"), soft_wrap=True)


def _mend(error: HeadwaterError) -> str:
    """A pipeline file's problems carry their own remedies."""
    found = len(error.problems) if isinstance(error, SpecError) else 0
    return f"mend {'it' if found == 1 else f'these {found}'}, then type the same again" * bool(
        found
    )


def plain(text: str) -> str:
    """Text that cannot move the cursor, recolour or reorder what stands around it."""
    return "\n".join(escape(line) for line in text.splitlines())


def table(*columns: str, right: Iterable[str] = (), flexible: Iterable[str] = ()) -> Table:
    """An empty table in the house's one look.

    Args:
        right: columns of numbers.
        flexible: columns that may fold when the terminal is narrow; the others never do.
    """
    made = Table(box=_RULED, show_edge=False, pad_edge=False, header_style="dim")
    made.padding = (0, 1, 0, 0)
    for column in columns:
        made.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column not in flexible,
            overflow="fold" if column in flexible else "ellipsis",
        )
    return made


def show(made: Table, indent: int = 2) -> None:
    """Print a table."""
    from rich.padding import Padding

    screen().print(Padding(made, (0, 0, 0, indent), expand=False))


def state(word: str) -> Text:
    """A state or a verdict with its mark and colour."""
    return Text(f"{MARKS.get(word, '·')} {word}", style=STYLES.get(word, ""))


def print_json(data: Any) -> None:
    """Data for programs: one JSON value on standard output."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n")


# --- figures -----------------------------------------------------------------------------------


def prominent(values: Mapping[str, float]) -> list[str]:
    """The metrics' names, those that people ask for first."""
    names = [name for name in PROMINENT if name in values]
    return names + [name for name in values if name not in names]


def figures(values: Mapping[str, float], limit: int = 3) -> str:
    """A stage's metrics on one line."""
    shown = [f"{name} {number(values[name])}" for name in prominent(values)[:limit]]
    more = len(values) - limit
    return "  ".join(shown) + (f"  +{more}" if more > 0 else "")


def rows(made: Table, lines: Iterable[Sequence[Any]]) -> Table:
    """The table with these rows; text stands as it is, brackets and all."""
    for line in lines:
        made.add_row(*[Text(plain(cell)) if isinstance(cell, str) else cell for cell in line])
    return made
