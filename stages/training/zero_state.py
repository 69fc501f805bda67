"""Where ZeRO keeps the float32 weights and the optimizer's moments on this rank, by parameter name.

Every stage is seen as a list of fragments: `count` numbers of a flattened parameter from `start`
on, with views into the tensors that the optimizer updates. Saving writes the fragments a rank
owns; loading fills all that it holds, so that what was saved under one layout loads under any
other. The optimizer's state is made at once, zeroed, rather than at the first update.

    stage 0   every rank holds everything; it owns the r-th part of all parameters laid end to end
    stage 1-2 a rank holds and owns a range of each flattened parameter group
    stage 3   a rank holds and owns the r-th part of each parameter

Of experts that are spread over ranks, each stage keeps what lies on this rank and its like; their
fragments count from the beginning of the tensor of all experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from stages.training.expert_parallel import Share, is_apart
from stages.training.optim.muon import MARK

if TYPE_CHECKING:
    from stages.training.ranks.rank import Rank


@dataclass
class Fragment:
    """A run of numbers of one flattened parameter, with its moments."""

    name: str
    start: int
    views: dict[str, Tensor]
    """Kind to a flat view of `count` numbers: `fp32`, and `exp_avg` and `exp_avg_sq` of Adam, or
    `momentum` of Muon."""

    @property
    def count(self) -> int:
        """How many numbers."""
        return self.views["fp32"].numel()

    def part(self, start: int, stop: int) -> Fragment:
        """The fragment from `start` to `stop`, counted within it."""
        views = {kind: view[start:stop] for kind, view in self.views.items()}
        return Fragment(self.name, self.start + start, views)


class Shards:
    """What one rank holds of one module's training state."""

    def __init__(
        self,
        held: list[Fragment],
        owned: list[Fragment],
        steps: list[Tensor],
        publish: Callable[[], None],
    ) -> None:
        self.held = held
        self.owned = owned
        self._steps = steps
        self._publish = publish

    @property
    def updates(self) -> float:
        """The `step` of Adam's bias correction."""
        return float(self._steps[0])

    @torch.no_grad()
    def load(
        self,
        read: Callable[[Fragment, str], Tensor],
        kinds: Sequence[str] | None = None,
        updates: float | None = None,
    ) -> None:
        """Fill what this rank holds, of some kinds or of all, from `read(fragment, kind)`, and the
        module's copy with it."""
        for fragment in self.held:
            for kind in kinds or fragment.views:
                fragment.views[kind].copy_(read(fragment, kind))
        if updates is not None:
            for step in self._steps:
                step.fill_(updates)
        self._publish()


@torch.no_grad()
def whole_weights(
    shards: Shards, shapes: Mapping[str, Sequence[int]], rank: Rank
) -> dict[str, Tensor]:
    """All weights in float32 in rank 0's host memory, by name; nothing on the other ranks.

    They come one fragment after another: no device holds more than one beside its own.
    """
    known = rank.gather([(part.name, part.start, part.count) for part in shards.owned])
    found = {name: torch.empty(tuple(shape)) for name, shape in shapes.items() if rank.first}
    for owner, parts in enumerate(known):
        for number, (name, start, count) in enumerate(parts):
            if owner == rank.index:
                piece = shards.owned[number].views["fp32"].to(rank.device)
            else:
                piece = torch.empty(count, device=rank.device)
            if rank.world > 1:
                dist.broadcast(piece, src=owner)
            if rank.first:
                found[name].view(-1)[start : start + count].copy_(piece)
            rank.beat()
    return found


def layout(
    zero: int,
    engine: Any,
    adam: torch.optim.AdamW,
    parameters: Mapping[str, Tensor],
    rank: Rank,
    shares: Mapping[str, Share] | None = None,
) -> Shards:
    """The fragments of a fresh DeepSpeed engine; Adam's state is created where there is none.

    `shares` are the parameters of which this rank holds a part.
    """
    shares = shares or {}
    if zero == 0:
        return _whole(adam, parameters, rank, shares)
    found = (_by_parameter if zero == 3 else _by_group)(engine, adam, parameters)
    for fragment in found.held:
        if fragment.name in shares:
            fragment.start += shares[fragment.name].start
    return found


def _whole(
    adam: torch.optim.AdamW,
    parameters: Mapping[str, Tensor],
    rank: Rank,
    shares: Mapping[str, Share],
) -> Shards:
    states = [_state(adam, parameter) for parameter in parameters.values()]
    held = [
        Fragment(
            name,
            shares[name].start if name in shares else 0,
            {k: v.view(-1) for k, v in _views(p.data, state).items()},
        )
        for (name, p), state in zip(parameters.items(), states, strict=True)
    ]
    owned = list(_slice([f for f in held if f.name not in shares], rank.index, rank.world))
    if shares:
        share = next(iter(shares.values()))
        owned += _slice([f for f in held if f.name in shares], share.index, share.of)
    return Shards(held, owned, [state["step"] for state in states], lambda: None)


def _slice(held: list[Fragment], index: int, world: int) -> Iterator[Fragment]:
    """The part of all numbers, laid end to end, that a rank is to save."""
    total = sum(fragment.count for fragment in held)
    low, high, at = total * index // world, total * (index + 1) // world, 0
    for fragment in held:
        start, stop = max(low - at, 0), min(high - at, fragment.count)
        if start < stop:
            yield fragment.part(start, stop)
        at += fragment.count


def _by_group(engine: Any, adam: torch.optim.AdamW, parameters: Mapping[str, Tensor]) -> Shards:
    zero = engine.optimizer
    flats = zero.single_partition_of_fp32_groups
    states = [_state(adam, flat) for flat in flats]
    held = []
    for name, parameter in parameters.items():
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            continue
        flat = flats[mapping.param_group_index]
        views = _views(flat.data, states[mapping.param_group_index])
        at = mapping.hp_fragment_address
        views = {kind: view.narrow(0, at.start, at.numel) for kind, view in views.items()}
        held.append(Fragment(name, mapping.lp_fragment_address.start, views))
    return Shards(held, held, [state["step"] for state in states], zero.update_lp_params)


def _by_parameter(engine: Any, adam: torch.optim.AdamW, parameters: Mapping[str, Tensor]) -> Shards:
    zero = engine.optimizer
    flats = zero.fp32_partitioned_groups_flat
    states = [_state(adam, flat) for flat in flats]
    held = []
    for name, parameter in parameters.items():
        group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
        known: Any = parameter
        start = known.ds_zero_partition_rank * size
        count = min(size, known.ds_numel - start)
        if count > 0:  # the last ranks of a small parameter hold padding only
            views = _views(flats[group].data, states[group])
            views = {kind: view.narrow(0, offset, count) for kind, view in views.items()}
            held.append(Fragment(name, start, views))

    def publish() -> None:
        zero._partition_all_parameters()
        for group in range(len(flats)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        for apart in (False, True):
            small = [p for p in zero.persistent_parameters if is_apart(p) is apart]
            if small:
                small[0].all_gather(small)

    return Shards(held, held, [state["step"] for state in states], publish)


def _state(adam: torch.optim.AdamW, parameter: Tensor) -> dict[str, Tensor]:
    """The optimizer's state of one tensor, as its own first step would make it."""
    state: dict[str, Tensor] = adam.state[parameter]
    if not state:
        turned = any(p is parameter for g in adam.param_groups if MARK in g for p in g["params"])
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        for kind in ("momentum",) if turned else ("exp_avg", "exp_avg_sq"):
            state[kind] = torch.zeros_like(parameter.data)
    return state


def _views(weight: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"fp32": weight, **{kind: moment for kind, moment in state.items() if kind != "step"}}
