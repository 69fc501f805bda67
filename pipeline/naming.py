"""Names of stages, artifacts, runs and models: each is safe as one part of a path."""

from __future__ import annotations

import re

from pipeline.errors import UserError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
NAME_RULE = "use 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit"


def check_name(name: str, noun: str) -> str:
    """Return the name if it is valid.

    Args:
        noun: what the name stands for, as in "a run".

    Raises:
        UserError: the name does not match `NAME`.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} is not a valid name for {noun}", remedy=NAME_RULE)
    return name
