"""Terminal output: text, tables, metrics, JSON and errors.

Colours and redrawn lines appear on terminals only, and never with NO_COLOR. A pipe or a log file
receives the same text as plain lines that are not truncated.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.ui.formatting import number
from pipeline.errors import HeadwaterError, SpecError
from pipeline.kind import headline_metrics
from pipeline.plain_data import to_json
from pipeline.redaction import escape_control_characters

NARROW = 100  # terminal columns; narrower tables drop their least important columns
PARAGRAPH_INDENT = 7  # columns of the further lines of a paragraph: below the text of `error: `
PIPED = 200  # columns of a table that is written to a pipe or a file

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
_TABLE_BOX = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")


def get_console(stderr: bool = False) -> Console:
    """Return the console of the terminal, pipe or file behind standard output (or error)."""
    stream = sys.stderr if stderr else sys.stdout
    piped = not stream.isatty()
    width = PIPED if piped and not os.environ.get("COLUMNS") else None
    return Console(
        stderr=stderr, width=width, highlight=False, soft_wrap=False, emoji=False, markup=False
    )


def echo(message: str = "", style: str = "", stderr: bool = False) -> None:
    """Print plain text, with its lines as they are: not wrapped, control characters escaped."""
    get_console(stderr).print(Text(escape_lines(message), style=style), soft_wrap=True)


def plain_text(*parts: str | tuple[str, str] | Text, style: str = "") -> Text:
    """Return text, of parts with styles, that is shown as it is: markup is not interpreted, and
    control characters, line breaks too, are escaped.

    All text of a table, a tree or a live display is made here.
    """
    whole = Text(style=style)
    for part in parts:
        words, own_style = part if isinstance(part, tuple) else (part, "")
        if isinstance(words, Text):
            whole.append_text(words)
        else:
            whole.append(escape_control_characters(words), own_style)
    return whole


def print_line(*parts: str | tuple[str, str] | Text, stderr: bool = False) -> None:
    """Print `plain_text` as one line, not wrapped."""
    get_console(stderr).print(plain_text(*parts), soft_wrap=True)


def print_paragraph(message: str, style: str = "", indent: int = 0, stderr: bool = False) -> None:
    """Print prose, wrapped between words on a terminal; each further line is indented like the
    first, by at least 7 columns."""
    console = get_console(stderr)
    text = _wrap_lines(textwrap.indent(escape_lines(message), " " * indent), console)
    console.print(Text(text, style=style), soft_wrap=True)


def _wrap_lines(text: str, console: Console) -> str:
    """Wrap each line between words at the width of a terminal; a pipe receives it as it is."""
    if not console.is_terminal:
        return text
    width = max(console.width, 2 * PARAGRAPH_INDENT)
    lines = []
    for line in text.splitlines():
        deeper = " " * max(PARAGRAPH_INDENT, len(line) - len(line.lstrip()))
        wrapped = textwrap.wrap(
            line,
            width,
            subsequent_indent=deeper,
            break_on_hyphens=False,
            break_long_words=False,
        )
        lines += wrapped or [""]
    return "\n".join(lines)


def suggest_command(command: str, why: str = "", *, stderr: bool = True) -> None:
    """Print the command to type next, on standard error by default."""
    why = f"   {why}" if why else ""
    print_line(("next: ", "bold"), (command, "cyan"), (why, "dim"), stderr=stderr)


def print_error(error: HeadwaterError) -> None:
    """Print an error and its remedy on standard error."""
    remedy = error.remedy
    if not remedy and isinstance(error, SpecError) and error.problems:
        count = len(error.problems)
        remedy = (
            f"fix {'it' if count == 1 else f'these {count} problems'} and run the command again"
        )
    console = get_console(stderr=True)
    text = Text(_wrap_lines(f"error: {escape_lines(str(error))}", console))
    text.stylize("bold red", 0, len("error:"))
    console.print(text, soft_wrap=True)
    if remedy:
        text = Text("next: ", style="bold") + Text(escape_lines(remedy), "cyan")
        console.print(text, soft_wrap=True)


def escape_lines(text: str) -> str:
    """Escape control and bidirectional characters of each line, so that text cannot move the
    cursor, change colours or reorder what surrounds it."""
    return "\n".join(escape_control_characters(line) for line in text.splitlines())


class PlainTable(Table):
    """Table whose cells are shown as they are: `plain_text` of each text."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Append a row."""
        shown = (plain_text(cell) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*shown, **options)


def make_table(
    *columns: str, right: Iterable[str] = (), flexible: Iterable[str] = ()
) -> PlainTable:
    """Return an empty table in the style of all commands.

    Args:
        right: right-aligned columns (numbers).
        flexible: columns that may wrap on a narrow terminal; the others never do.
    """
    table = PlainTable(box=_TABLE_BOX, show_edge=False, pad_edge=False, header_style="dim")
    table.padding = (0, 1, 0, 0)
    for column in columns:
        table.add_column(
            plain_text(column),
            justify="right" if column in right else "left",
            no_wrap=column not in flexible,
            overflow="fold" if column in flexible else "ellipsis",
        )
    return table


def print_table(table: Table, indent: int = 2) -> None:
    """Print a table, indented."""
    from rich.padding import Padding

    get_console().print(Padding(table, (0, 0, 0, indent), expand=False))


def format_state(state: str) -> Text:
    """Return a state or a plan action with its mark and colour."""
    return Text(f"{MARKS.get(state, '·')} {state}", style=STYLES.get(state, ""))


def print_json(data: Any) -> None:
    """Print one JSON value on standard output; NaN and infinity are null, and control characters
    are escaped."""
    text = to_json(data, indent=2, ensure_ascii=False)
    unsafe = {c for c in text if not c.isprintable() and c != "\n"}
    sys.stdout.write(text.translate({ord(c): json.dumps(c)[1:-1] for c in unsafe}) + "\n")


def order_metrics(metrics: Mapping[str, float | None], kind: str) -> list[str]:
    """Return the metric names of an artifact, with the headline metrics of its kind first."""
    names = [name for name in headline_metrics(kind) if name in metrics]
    return names + [name for name in metrics if name not in names]


def format_metrics(metrics: Mapping[str, float | None], kind: str, limit: int = 3) -> str:
    """Return the first `limit` metrics of an artifact on one line."""
    shown = [f"{name} {number(metrics[name])}" for name in order_metrics(metrics, kind)[:limit]]
    more = len(metrics) - limit
    return "  ".join(shown) + (f"  +{more}" if more > 0 else "")
