"""Chat templates: files of `chat_templates`, files of the user, and those of models.

The files here name their tokens in `set` lines at their head:

    {%- set end = '<|im_end|>' -%}

which `adapt_template` replaces by the names that a tokenizer has for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.atomic_io import disk_errors, read_json
from pipeline.errors import InputError

TEMPLATES = ("headwater", "chatml", "llama3", "plain")
"""Names of the templates here."""
FOLDER = Path(__file__).parent / "chat_templates"
FILE = "chat_template.jinja"
"""Name of the file that holds the template of a model."""

_TOKEN = re.compile(r"\{%- set (\w+) = '(<[^']*)' -%\}")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def named_template(name: str) -> str:
    """Return the source of a template here, or of a file.

    Raises:
        InputError: there is neither.
    """
    path = FOLDER / f"{name}.jinja" if name in TEMPLATES else Path(name)
    if not path.is_file():
        raise InputError(
            f"no chat template {name!r}",
            remedy=f"give one of {', '.join(TEMPLATES)}, or the path of a jinja file",
        )
    try:
        with disk_errors(path, to="read"):
            return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"not a text: {error}", where=str(path)) from error


def model_template(folder: Path) -> str | None:
    """Return the template that a model's folder holds, in a file of its own or in
    `tokenizer_config.json`, of several the one named `default`; None if it has no template."""
    if (folder / FILE).is_file():
        return named_template(str(folder / FILE))
    config: dict[str, Any] = read_json(folder / "tokenizer_config.json", {})
    found = config.get("chat_template")
    if isinstance(found, list):
        found = {each["name"]: each["template"] for each in found}.get("default")
    return found if isinstance(found, str) else None


def adapt_template(source: str, token_name: Callable[[str, str], str]) -> str:
    """Return a template with a tokenizer's names of the tokens that its `set` lines define.
    `token_name` receives the variable and the token."""

    def line(found: re.Match[str]) -> str:
        name = json.dumps(token_name(found[1], found[2]))[1:-1].replace("'", "\\'")
        return f"{{%- set {found[1]} = '{name}' -%}}"

    return _TOKEN.sub(line, source)


def marks_answers(source: str) -> bool:
    """Return whether a template has {% generation %} blocks."""
    return bool(_GENERATION.search(source))
