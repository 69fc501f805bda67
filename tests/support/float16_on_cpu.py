"""Training in float16 without a GPU."""

from __future__ import annotations

from deepspeed.accelerator import get_accelerator


def allow_float16() -> None:
    """A processor can train in it, though DeepSpeed holds it too slow."""
    get_accelerator().is_fp16_supported = lambda: True
