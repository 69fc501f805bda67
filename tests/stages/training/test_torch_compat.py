"""The workarounds for torch are still needed, and work."""

from __future__ import annotations

import subprocess
import sys

import torch

from stages.training.torch_compat import compile_disabled

BUILD = """
import sys, torch
{imports}
weight = torch.nn.Parameter(torch.zeros(1))
{optimizer}([weight], lr=1.0).zero_grad()
sys.exit("torch._dynamo" in sys.modules)
"""


def imports_compiler(optimizer: str, imports: str = "") -> bool:
    code = BUILD.format(optimizer=optimizer, imports=imports)
    return bool(subprocess.run([sys.executable, "-c", code], check=False).returncode)


def test_torch_optimizers_import_the_compiler_and_ours_do_not() -> None:
    assert imports_compiler("torch.optim.AdamW"), "without_compiler_import is no longer needed"
    ours = "from stages.training.optim.hooked_optimizer import AdamW"
    assert not imports_compiler("AdamW", ours)


def test_compile_does_nothing_while_it_is_disabled() -> None:
    original = torch.compile
    with compile_disabled():

        @torch.compile
        def plain() -> int:
            return 1

        @torch.compile(dynamic=True)
        def called() -> int:
            return 2

    assert (plain(), called()) == (1, 2)
    assert not hasattr(plain, "_torchdynamo_orig_callable")
    assert torch.compile is original
