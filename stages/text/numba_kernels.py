"""Loops compiled by numba, for what arrays would spread over many passes.

The compiled code is kept beside its module (in the user's cache directory where that is not
writable) until the module's file changes. So a kernel calls nothing compiled of another module.
It is compiled for one signature as its module is imported, never in mid-run; what it consists of
therefore stands before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba

_Function = TypeVar("_Function", bound=Callable[..., object])


def kernel(signature: str) -> Callable[[_Function], _Function]:
    """Compiles for that signature, or reads what an earlier process compiled."""

    def compile_(function: _Function) -> _Function:
        try:
            compiled: _Function = numba.njit(signature, cache=True, nogil=True)(function)
        except RuntimeError:  # no directory to keep it in
            compiled = numba.njit(signature, nogil=True)(function)
        return compiled

    return compile_


def inlined(function: _Function) -> _Function:
    """Compiled as a part of the kernels that call it."""
    compiled: _Function = numba.njit(nogil=True)(function)
    return compiled
