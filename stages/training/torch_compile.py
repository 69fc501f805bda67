"""Compiles the blocks of a model one by one, by torch.compile (Ansel et al. 2024): one graph serves
all blocks of the same shape, which takes seconds to compile where a whole model takes minutes.

A block is compiled in place: its parameters keep their names and hooks, so that engines and
checkpoints see no difference. Blocks with experts are not compiled, because the number of tokens of
an expert differs from batch to batch.
"""

from __future__ import annotations

import os
import shlex
import shutil
from importlib.util import find_spec

import torch

from pipeline.errors import InputError
from stages.models.language_model import LanguageModel
from stages.models.moe import MoELayer


def compile_blocks(model: LanguageModel, device: torch.device) -> None:
    """Mark the blocks to be compiled at their first call.

    Raises:
        InputError: this machine lacks what the compiler needs.
    """
    if missing := _missing(device):
        raise InputError(
            f"torch.compile needs {missing}, which is not installed",
            where="model.compile",
            remedy="install it where the workers run, or leave model.compile out",
        )
    for block in model.blocks:
        if not any(isinstance(part, MoELayer) for part in block.modules()):
            block.compile()


def _missing(device: torch.device) -> str:
    """Return what torch's backend needs to build kernels and cannot find, or an empty text."""
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(shlex.split(compiler)[0]) is None:
        return f"a C++ compiler ({compiler}; the variable CXX may name another)"
    return "triton" if device.type == "cuda" and find_spec("triton") is None else ""
