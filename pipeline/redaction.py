"""Secrets and unsafe characters in text.

A pipeline file names a secret as `${env:NAME}`. The value is read only inside a running stage and
never enters the file, the store or a log.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import quote, quote_plus

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

    Call it where text enters, before it is escaped or split into lines.
    """
    pattern, references = secret_pattern(names)
    return pattern.sub(lambda match: references[match[0]], text)


def secret_pattern(names: Iterable[str]) -> tuple[re.Pattern[str], dict[str, str]]:
    """Return a pattern of everything to replace, and the reference that replaces each match.

    These are the values, each of their lines, and the forms in which Python, JSON, HTML and URLs
    quote them. What is shorter than four characters is kept: it occurs inside words.
    """
    return _secret_pattern(tuple((name, os.environ.get(name, "")) for name in names))


@lru_cache(maxsize=8)
def _secret_pattern(values: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    forms: dict[str, str] = {}
    for name, value in values:
        for part in (value, *value.splitlines()):
            quoted = repr(part)[1:-1], json.dumps(part)[1:-1], html.escape(part)
            urls = [q(os.fsencode(part), safe) for q in (quote, quote_plus) for safe in ("", "/")]
            known = part, part.strip(), *quoted, *urls
            forms |= dict.fromkeys(known if len(part.strip()) > 3 else (), f"${{env:{name}}}")
    longest_first = sorted(forms, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)"), forms


def escape_control_characters(text: str) -> str:
    """Write control characters, bidi marks and the like as codes of Python, except tabs, so that
    text can neither move the cursor nor reorder what surrounds it."""
    unsafe = {ord(c): c for c in set(text) if not c.isprintable() and c != "\t"}
    return text.translate({key: c.encode("unicode_escape").decode() for key, c in unsafe.items()})
