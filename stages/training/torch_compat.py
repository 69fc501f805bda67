"""Workarounds for torch, checked against torch 2.13.

- Importing `torch._dynamo` takes 2.5 s and 60 MB per rank. Torch decorates methods of its
  optimizers so that their first call imports it, merely to exclude them from compilation.
- DeepSpeed decorates functions with `torch.compile` when it is imported, which imports the whole
  compiler (5 s).

tests/stages/training/test_torch_compat.py fails when one of them is no longer needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def without_compiler_import(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function under torch's decorator that imports the compiler when it is called."""
    function: Callable[..., Any] = method.__wrapped__  # type: ignore[attr-defined]
    return function


@contextmanager
def compile_disabled() -> Iterator[None]:
    """Let `torch.compile` return what it decorates unchanged."""

    def unchanged(model: Any = None, **_: Any) -> Any:
        return unchanged if model is None else model

    original, torch.compile = torch.compile, unchanged
    try:
        yield
    finally:
        torch.compile = original
