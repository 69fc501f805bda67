"""Blocks compiled by torch.compile (Ansel et al. 2024), each by itself: one graph serves all blocks
of a shape, which takes seconds to make where a whole model takes minutes.

A block is compiled in place: parameters keep their names and what hangs on them, so that engines
and checkpoints see no difference. Blocks with experts run as they are: how many tokens an expert
gets is known only when they come.
"""

from __future__ import annotations

import os
import shlex
import shutil
from importlib.util import find_spec

import torch

from pipeline.errors import InputError
from stages.models.language_model import LanguageModel
from stages.models.moe import Switch


def compile_blocks(model: LanguageModel, device: torch.device) -> None:
    """Have the blocks compiled when they are first called.

    Raises:
        InputError: what the compiler needs on this machine is missing.
    """
    if missing := _missing(device):
        raise InputError(
            f"torch.compile needs {missing}, which is not there",
            where="model.compile",
            remedy="install it where the workers run, or leave model.compile out",
        )
    for block in model.blocks:
        if not any(isinstance(part, Switch) for part in block.modules()):
            block.compile()


def _missing(device: torch.device) -> str:
    """What torch's backend builds kernels with, if it cannot be found."""
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(shlex.split(compiler)[0]) is None:
        return f"a C++ compiler ({compiler}; the variable CXX may name another)"
    return "triton" if device.type == "cuda" and find_spec("triton") is None else ""
