"""Loops compiled by numba, where array operations would need many passes.

The compiled code is cached next to its module (in the user's cache directory where that is not
writable) until the module's file changes. For this reason a kernel calls no compiled function of
another module. Kernels are compiled for one signature when their module is imported, never during
a run, so what they call must be defined before them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba

_Function = TypeVar("_Function", bound=Callable[..., object])


def kernel(signature: str) -> Callable[[_Function], _Function]:
    """Compile for this signature, or load what an earlier process compiled."""

    def compile_(function: _Function) -> _Function:
        try:
            compiled: _Function = numba.njit(signature, cache=True, nogil=True)(function)
        except RuntimeError:  # no writable cache directory
            compiled = numba.njit(signature, nogil=True)(function)
        return compiled

    return compile_


def inline_kernel(function: _Function) -> _Function:
    """Compile a function as a part of the kernels that call it."""
    compiled: _Function = numba.njit(nogil=True)(function)
    return compiled
