"""Secrets and unsafe characters in text.

A pipeline file names a secret as `${env:NAME}`. The value is read only inside a running stage and
never enters the file, the store or a log.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from pipeline.errors import InputError

SECRET = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
"""A reference to a secret; group 1 is the name of the environment variable."""


def secret_names(text: str) -> frozenset[str]:
    """Return the names of all secrets that a text refers to."""
    return frozenset(SECRET.findall(text))


def resolve_secrets(text: str) -> str:
    """Replace each `${env:NAME}` by the value of the variable. Call it only inside `run`.

    Raises:
        InputError: a variable is not set in the environment of the stage.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise InputError(f"the secret {match[1]} is not set", remedy=f"export {match[1]}=…")
        return os.environ[match[1]]

    return SECRET.sub(value, text)


def redact(text: str, names: Iterable[str]) -> str:
    """Replace the values of these environment variables in a text by references to their names.

    Values shorter than four characters are kept: they are not secrets and occur inside words.
    """
    values = {os.environ[name]: name for name in names if len(os.environ.get(name, "")) > 3}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, f"${{env:{values[value]}}}")
    return text


def escape_control_characters(text: str) -> str:
    """Write control characters and bidi marks as codes, so that text cannot move the cursor."""
    return "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in text)
