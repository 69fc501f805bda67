"""The error of a file whose content ends before its records do."""

from __future__ import annotations

from pipeline.errors import InputError


class BrokenFile(InputError):
    """A file that cannot be read any further: it is damaged or truncated."""
