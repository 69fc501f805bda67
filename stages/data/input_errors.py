"""Exceptions of libraries as `InputError`: one context manager for every reader of outside data.

Storage systems, hubs and file formats each have an exception tree of their own. A reader states how
one of these exceptions is to be reported, and the rest passes unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.errors import InputError


@contextmanager
def as_input_error(
    translate: Callable[[Exception], InputError | None], *, hide_cause: bool = False
) -> Iterator[None]:
    """Raise what a library raises as the `InputError` that `translate` makes of it.

    Args:
        translate: returns the error to raise, or None for an exception that passes unchanged.
        hide_cause: whether to drop the original exception, whose text and traceback may hold
            secrets.

    Raises:
        InputError: as translated, or as raised by the body.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        translated = translate(error)
        if translated is None:
            raise
        raise translated from (None if hide_cause else error)
