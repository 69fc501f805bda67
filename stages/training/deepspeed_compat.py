"""Workarounds for DeepSpeed, checked against DeepSpeed 0.19.8.

- `import_deepspeed`: its import builds extensions, imports MLflow (2 s, for its autotuner) and
  torch's compiler (5 s, for an optimizer that is not used here), and warns of what is intended.
- `one_zero_optimizer`: at ZeRO 1 with bfloat16 it uses another optimizer wrapper than at stage 2.
- `mark_expert_layer`: it reduces, shards and measures expert weights right only in layers of its
  own class.

tests/stages/training/test_deepspeed_compat.py fails when one of them is no longer needed. What of
DeepSpeed's private state is read, rather than changed, stands in `stages.training.zero_state` and
`stages.training.optim.muon`. Imports neither DeepSpeed nor torch before a function is called,
because a rank sets its environment first.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

CHECKED_VERSION = "0.19.8"


def import_deepspeed() -> None:
    """Import DeepSpeed without the modules and builds that training does not use."""
    from stages.training.torch_compat import compile_disabled

    with warnings.catch_warnings(), _hidden_module("mlflow"), compile_disabled():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.runtime.zero.muon.original_muon
    # A killed build of this operator leaves a lock that hangs every later run, and without a
    # compiler the build fails. gloo alone is as fast for the collectives used here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It warns of every skipped step; the trainer logs these itself.
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # It calls torch's collectives by their deprecated names.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


@contextmanager
def _hidden_module(name: str) -> Iterator[None]:
    """Make a module seem not installed, unless it is imported already."""
    hidden = name not in sys.modules
    if hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[name]


@contextmanager
def one_zero_optimizer(zero_stage: int) -> Iterator[None]:
    """Let DeepSpeed use the same optimizer wrapper at stages 1 and 2.

    For bfloat16 with float32 gradient accumulation it has another wrapper at stage 1, which keeps
    master weights elsewhere. The wrapper of stages 1 and 2 accumulates in float32 as well.
    """
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION

    original = DeepSpeedEngine._do_optimizer_sanity_check
    if zero_stage:
        DeepSpeedEngine._do_optimizer_sanity_check = lambda *_: ZERO_OPTIMIZATION
    try:
        yield
    finally:
        DeepSpeedEngine._do_optimizer_sanity_check = original


def create_expert_groups(size: int) -> tuple[str, Any]:
    """Create the process groups of expert parallelism, from the initialized default group.

    Returns:
        The name of this rank's expert-parallel group, and the group.
    """
    import deepspeed
    from deepspeed.utils import groups

    deepspeed.init_distributed(verbose=False)  # adopts the default group
    groups._create_expert_and_data_parallel(size)
    name = f"ep_size_{size}"
    return name, groups._get_expert_parallel_group(name)


def expert_group(name: str) -> Any:
    """Return the expert-parallel process group of that name."""
    from deepspeed.utils import groups

    return groups._get_expert_parallel_group(name)


def mark_expert_layer(layer: nn.Module, num_experts: int, size: int, group_name: str) -> None:
    """Mark a layer and the weights of its experts as DeepSpeed marks its own expert layers, so that
    gradients are averaged among the ranks that hold the same experts.

    Args:
        layer: a layer whose experts are the module `layer.experts`.
        num_experts: experts of the layer, over all ranks.
        size: ranks that share them.
        group_name: name of their process group.
    """
    from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer

    marked: Any = layer
    marked.num_experts, marked.ep_size, marked.ep_group_name = num_experts, size, group_name
    marked.set_deepspeed_parallelism = lambda *_, **__: None
    own = type(layer)
    marked.__class__ = type(own.__name__, (own, AutoEPMoELayer), {})
    for parameter in marked.experts.parameters():
        parameter.allreduce, parameter.group_name = False, group_name
        parameter.ds_zero_placement_family = "autoep_expert"
        parameter.ds_zero_partition_group_name = group_name
