"""The place of float32 weights and optimizer states on this rank under ZeRO, by parameter name.

Every ZeRO stage is described by a list of fragments: `count` numbers of a flattened parameter from
`start` on, with views into the tensors that the optimizer updates. Saving writes the fragments that
the rank is responsible for; loading fills all fragments that it holds, so that what was saved under
one layout loads under any other. Optimizer states are created at once, as zeros, rather than by the
first update.

    stage 0   every rank holds everything, and saves the r-th part of all parameters laid end to end
    stage 1-2 a rank holds and saves a range of each flattened parameter group
    stage 3   a rank holds and saves the r-th part of each parameter

Experts that are sharded over ranks are partitioned by each stage among the ranks with the same
experts; their fragments count from the start of the tensor of all experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from stages.training.deepspeed_compat import (
    flat_groups,
    flat_subgroups,
    group_range,
    subgroup_range,
    update_sharded_module,
)
from stages.training.expert_parallel import ExpertShard, is_expert_sharded

if TYPE_CHECKING:
    from stages.training.ranks.rank import Rank


@dataclass
class Fragment:
    """A run of numbers of one flattened parameter, with its optimizer states."""

    name: str
    start: int
    views: dict[str, Tensor]
    """Flat views of `count` numbers: `fp32` is the weight, the others are the states that the
    optimizer's spec names."""

    @property
    def count(self) -> int:
        """Return how many numbers it has."""
        return self.views["fp32"].numel()

    def part(self, start: int, stop: int) -> Fragment:
        """Return the numbers from `start` to `stop`, counted within the fragment."""
        views = {kind: view[start:stop] for kind, view in self.views.items()}
        return Fragment(self.name, self.start + start, views)


class PartitionedState:
    """The training state of one module that one rank holds."""

    def __init__(
        self,
        local: list[Fragment],
        saved: list[Fragment],
        steps: list[Tensor],
        update_module: Callable[[], None],
    ) -> None:
        self.local = local
        """Fragments that this rank holds."""
        self.saved = saved
        """Fragments that this rank saves: over all ranks each number once."""
        self._steps = steps
        self._update_module = update_module

    @property
    def updates(self) -> float:
        """Return the number of updates made, the `step` of Adam's bias correction."""
        return float(self._steps[0])

    @torch.no_grad()
    def load(
        self,
        read: Callable[[Fragment, str], Tensor],
        kinds: Sequence[str] | None = None,
        updates: float | None = None,
    ) -> None:
        """Fill the fragments of this rank, and the module's own copy of the weights.

        Args:
            read: returns the numbers of one kind (`fp32`, `exp_avg`…) of a fragment.
            kinds: the kinds to fill. Default: all.
            updates: number of updates to continue from.
        """
        for fragment in self.local:
            for kind in kinds or fragment.views:
                fragment.views[kind].copy_(read(fragment, kind))
        if updates is not None:
            for step in self._steps:
                step.fill_(updates)
        self._update_module()


@torch.no_grad()
def gather_fp32_weights(
    state: PartitionedState, shapes: Mapping[str, Sequence[int]], rank: Rank
) -> dict[str, Tensor]:
    """Return all weights in float32 in rank 0's host memory, by name; nothing on the other ranks.

    They are sent one fragment after another, so that no device holds more than one besides its own.
    """
    places = rank.all_gather_object([(part.name, part.start, part.count) for part in state.saved])
    weights = {name: torch.empty(tuple(shape)) for name, shape in shapes.items() if rank.is_main}
    for owner, fragments in enumerate(places):
        for number, (name, start, count) in enumerate(fragments):
            if owner == rank.index:
                piece = state.saved[number].views["fp32"].to(rank.device)
            else:
                piece = torch.empty(count, device=rank.device)
            if rank.world > 1:
                dist.broadcast(piece, src=owner)
            if rank.is_main:
                weights[name].view(-1)[start : start + count].copy_(piece)
            rank.heartbeat()
    return weights


def build_partitioned_state(
    zero_stage: int,
    engine: Any,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    rank: Rank,
    expert_shards: Mapping[str, ExpertShard] | None = None,
) -> PartitionedState:
    """Build the fragments of a new DeepSpeed engine, and the optimizer states that do not exist.

    Args:
        zero_stage: the stage that the engine runs.
        engine: the DeepSpeed engine; unused at stage 0.
        optimizer: the optimizer under it.
        parameters: trained parameters by name.
        rank: this process.
        expert_shards: the parameters that expert parallelism shards.
    """
    shards = expert_shards or {}
    if zero_stage == 0:
        return _replicated_state(optimizer, parameters, rank, shards)
    build = _state_by_parameter if zero_stage == 3 else _state_by_group
    state = build(engine.optimizer, optimizer, parameters)
    for fragment in state.local:
        if fragment.name in shards:
            fragment.start += shards[fragment.name].start
    return state


def _replicated_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    rank: Rank,
    shards: Mapping[str, ExpertShard],
) -> PartitionedState:
    """Build the fragments of stage 0."""
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    states = {
        name: _optimizer_state(optimizer, p, group_of[id(p)]) for name, p in parameters.items()
    }
    local = [
        Fragment(
            name,
            shards[name].start if name in shards else 0,
            {kind: view.view(-1) for kind, view in _views(p.data, states[name]).items()},
        )
        for name, p in parameters.items()
    ]
    shared = [fragment for fragment in local if fragment.name not in shards]
    saved = list(_slice_of(shared, rank.index, rank.world))
    if shards:
        own = [fragment for fragment in local if fragment.name in shards]
        holders = next(iter(shards.values()))
        saved += _slice_of(own, holders.index, holders.of)
    steps = [state["step"] for state in states.values()]
    return PartitionedState(local, saved, steps, lambda: None)


def _slice_of(fragments: list[Fragment], index: int, of: int) -> Iterator[Fragment]:
    """Yield the `index`-th of `of` equal slices of all fragments laid end to end."""
    total = sum(fragment.count for fragment in fragments)
    low, high, at = total * index // of, total * (index + 1) // of, 0
    for fragment in fragments:
        start, stop = max(low - at, 0), min(high - at, fragment.count)
        if start < stop:
            yield fragment.part(start, stop)
        at += fragment.count


def _state_by_group(
    zero: Any, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]
) -> PartitionedState:
    """Build the fragments of stages 1 and 2, from DeepSpeed's `DeepSpeedZeroOptimizer`."""
    flats = flat_groups(zero)
    groups = optimizer.param_groups
    states = [_optimizer_state(optimizer, f, g) for f, g in zip(flats, groups, strict=True)]
    fragments = []
    for name, parameter in parameters.items():
        if held := group_range(parameter):
            views = _views(flats[held.flat].data, states[held.flat])
            views = {kind: view.narrow(0, held.offset, held.length) for kind, view in views.items()}
            fragments.append(Fragment(name, held.start, views))
    steps = [state["step"] for state in states]
    return PartitionedState(fragments, fragments, steps, zero.update_lp_params)


def _state_by_parameter(
    zero: Any, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]
) -> PartitionedState:
    """Build the fragments of stage 3, from DeepSpeed's `DeepSpeedZeroOptimizer_Stage3`."""
    flats = flat_subgroups(zero)
    states = [
        _optimizer_state(optimizer, flat, optimizer.param_groups[group]) for flat, group in flats
    ]
    fragments = []
    for name, parameter in parameters.items():
        held = subgroup_range(zero, parameter)
        if held.length > 0:  # the last ranks of a small parameter hold padding only
            views = _views(flats[held.flat][0].data, states[held.flat])
            views = {kind: view.narrow(0, held.offset, held.length) for kind, view in views.items()}
            fragments.append(Fragment(name, held.start, views))
    steps = [state["step"] for state in states]
    update_module = partial(update_sharded_module, zero, is_expert_sharded)
    return PartitionedState(fragments, fragments, steps, update_module)


def _optimizer_state(
    optimizer: torch.optim.Optimizer, parameter: Tensor, group: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the optimizer's state of one tensor, as its first update would create it."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        for kind in group["states"]:
            state[kind] = torch.zeros_like(parameter.data)
    return state


def _views(weight: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"fp32": weight, **{kind: tensor for kind, tensor in state.items() if kind != "step"}}
