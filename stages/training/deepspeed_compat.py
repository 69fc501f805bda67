"""Workarounds for DeepSpeed, and accessors of its private state, checked against DeepSpeed 0.19.8.

- `import_deepspeed`: its import builds extensions, imports MLflow (2 s, for its autotuner) and
  torch's compiler (5 s, for an optimizer that is not used here), and warns of what is intended.
- `one_zero_optimizer`: at ZeRO 1 with bfloat16 it uses another optimizer wrapper than at stage 2.
- `mark_expert_layer`: it reduces, shards and measures expert weights right only in layers of its
  own class.

tests/stages/training/test_deepspeed_compat.py fails when one of them is no longer needed. The other
functions read private state of DeepSpeed that has no public accessor. Imports neither DeepSpeed nor
torch before a function is called, because a rank sets its environment first.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn

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


def global_grad_norm(engine: Any) -> float:
    """Return the gradient norm that the ZeRO optimizer of an engine has computed in its step."""
    return float(engine.optimizer._global_grad_norm)


def set_gradient_allreduce(engine: Any, enabled: bool) -> None:
    """Set whether `backward` reduces the gradient over the ranks."""
    engine.enable_backward_allreduce = enabled


def loss_scaler(engine: Any) -> Any:
    """Return the dynamic loss scaler of a float16 engine, which does not raise at the smallest
    scale: the trainer gives up, after rollbacks."""
    scaler = engine.optimizer.loss_scaler
    scaler.raise_error_at_min_scale = False
    return scaler


class FlatRange(NamedTuple):
    """The range of a flat float32 tensor that holds a part of a parameter."""

    flat: int
    """Index of the flat tensor."""
    offset: int
    """Start of the range in the flat tensor."""
    length: int
    """Length of the range."""
    start: int
    """Start of the part in the flattened parameter."""


def flat_groups(zero: Any) -> list[Tensor]:
    """Return this rank's flat float32 range of each parameter group, at ZeRO 1 and 2."""
    groups: list[Tensor] = zero.single_partition_of_fp32_groups
    return groups


def group_range(parameter: Any) -> FlatRange | None:
    """Return the range of a parameter in `flat_groups`; None if this rank holds none of it."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    held = mapping.hp_fragment_address
    start = mapping.lp_fragment_address.start
    return FlatRange(mapping.param_group_index, held.start, held.numel, start)


def flat_subgroups(zero: Any) -> list[tuple[Tensor, int]]:
    """Return this rank's flat float32 tensors and their parameter groups, at ZeRO 3."""
    flats = enumerate(zero.fp32_partitioned_groups_flat)
    return [(flat, zero.sub_group_to_group_id[i]) for i, flat in flats]


def subgroup_range(zero: Any, parameter: Any) -> FlatRange:
    """Return the range of a parameter in `flat_subgroups`; its length is not positive where this
    rank holds padding only."""
    flat, offset, size = zero.grad_position[zero.get_param_id(parameter)]
    start = parameter.ds_zero_partition_rank * size
    return FlatRange(flat, offset, min(size, parameter.ds_numel - start), start)


def update_sharded_module(zero: Any, is_expert: Callable[[Tensor], bool]) -> None:
    """Copy the float32 weights of ZeRO 3 into the module's own."""
    zero._partition_all_parameters()
    for flat in range(len(zero.fp32_partitioned_groups_flat)):
        zero._reassign_or_swap_out_partitioned_parameters(flat)
    for sharded in (False, True):
        small = [p for p in zero.persistent_parameters if is_expert(p) is sharded]
        if small:
            small[0].all_gather(small)


def group_layout(zero: Any, group: int) -> tuple[list[tuple[int, tuple[int, ...]]], Any]:
    """Return start and shape of each parameter in a group that ZeRO 1 and 2 have flattened, and the
    process group that shares it."""
    shapes = [tuple(p.shape) for p in zero.round_robin_bit16_groups[group]]
    starts = zero.round_robin_bit16_offsets[group]
    return list(zip(starts, shapes, strict=True)), zero.real_dp_process_group[group]
