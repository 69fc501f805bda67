"""The workarounds for DeepSpeed are still needed. If a test fails here after an update of
DeepSpeed, remove the workaround that it names, or check it again."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest

from stages.training.deepspeed_compat import CHECKED_VERSION

SCRIPT = """
import inspect, json, os, sys
from types import SimpleNamespace

os.environ["DS_ACCELERATOR"] = "cpu"
import torch

seen = set()

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "mlflow":
            seen.add("mlflow")

def compiled(model=None, **_):
    seen.add("compile")
    return (lambda f: f) if model is None else model

sys.meta_path.insert(0, Finder())
torch.compile = compiled
import deepspeed
import deepspeed.runtime.zero.muon.original_muon
if "deepspeed_shm_comm" in deepspeed.ops.__compatible_ops__:
    seen.add("shm_comm")

from deepspeed.runtime import engine
from stages.training.deepspeed_compat import one_zero_optimizer

engine.is_zero_supported_optimizer = lambda optimizer: True

def wrapper(stage):
    fake = SimpleNamespace(
        get_data_types=lambda: (torch.bfloat16, torch.float32),
        zero_optimization=lambda: True,
        zero_optimization_stage=lambda: stage,
        zero_cpu_offload=lambda: False,
        zero_compute_grad_norm=lambda: True,
    )
    return str(engine.DeepSpeedEngine._do_optimizer_sanity_check(fake, None))

plain = [wrapper(1), wrapper(2)]
with one_zero_optimizer(1):
    patched = [wrapper(1), wrapper(2)]
print(json.dumps({
    "seen": sorted(seen), "plain": plain, "patched": patched, "restored": wrapper(1),
    "by_class": "isinstance(module, _AutoEPMoELayer)" in inspect.getsource(engine),
}))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Import DeepSpeed without workarounds in a process of its own, and return what it does."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_the_installed_version_is_the_checked_one() -> None:
    assert version("deepspeed") == CHECKED_VERSION, "check every workaround of deepspeed_compat"


def test_its_import_still_does_what_import_deepspeed_prevents(found: dict[str, Any]) -> None:
    assert found["seen"] == ["compile", "mlflow", "shm_comm"]


def test_bfloat16_at_stage_1_still_needs_one_zero_optimizer(found: dict[str, Any]) -> None:
    assert found["plain"][0] != found["plain"][1]
    assert found["patched"] == [found["plain"][1]] * 2
    assert found["restored"] == found["plain"][0]


def test_expert_layers_still_need_mark_expert_layer(found: dict[str, Any]) -> None:
    assert found["by_class"]
