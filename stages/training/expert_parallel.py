"""Expert parallelism: which rank holds which experts, and how tokens travel to them and back.

With expert parallelism of size p, p neighbouring ranks share the experts of each layer, the r-th of
them holds the r-th part; ranks with the same part average its gradients (Fedus et al. 2021,
section 5; Rajbhandari et al. 2022, section 5.2). Tokens travel by all-to-all, without padding.

DeepSpeed recognizes expert weights by marks and layers by class, and then reduces, shards and
measures them right at every ZeRO stage. Its layer and its checkpoints are not used: here an
expert's numbers are saved at their place in the tensor of all experts, so that a checkpoint does
not depend on how experts were sharded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from pipeline.errors import InputError
from stages.models.moe import Experts, MoELayer, SingleProcessExchange
from stages.training.deepspeed_compat import create_expert_groups, expert_group, mark_expert_layer

if TYPE_CHECKING:
    from stages.training.ranks.rank import Rank


@dataclass(frozen=True)
class ExpertShard:
    """The part of a parameter that this rank holds, and the ranks that hold the same part."""

    shape: tuple[int, ...]
    """Shape of the whole parameter."""
    start: int
    """Start of the part in the flattened parameter."""
    index: int
    """Index of this rank among the ranks that hold the same part."""
    of: int
    """Number of those ranks."""


class LocalExchange:
    """The exchange of ranks that each hold all experts: only loads are summed over ranks."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank

    def total(self, counts_E: Tensor) -> Tensor:
        """Return the tokens per expert, in training over all ranks; in evaluation of this rank,
        because the others may not evaluate."""
        if self._rank.world == 1 or not torch.is_grad_enabled():
            return counts_E
        counts_E = counts_E.clone()
        dist.all_reduce(counts_E)
        return counts_E

    def apply(self, experts: Experts, x_AC: Tensor, counts_E: Tensor) -> Tensor:
        """Return the outputs of the experts for the tokens."""
        outputs: Tensor = experts(x_AC, counts_E)
        return outputs


class AllToAllExchange(LocalExchange):
    """The exchange of ranks that each hold a part of the experts."""

    def __init__(self, rank: Rank, group: Any) -> None:
        super().__init__(rank)
        self._group, self._size = group, dist.get_world_size(group)

    def apply(self, experts: Experts, x_AC: Tensor, counts_E: Tensor) -> Tensor:
        """Send the tokens to their experts, and return the outputs in the order of the tokens.

        Tokens arrive by rank of origin, then by expert. L is the number of local experts, R the
        number of ranks.
        """
        counts_RL = counts_E.view(self._size, experts.num_local_experts)
        arriving_RL = torch.empty_like(counts_RL)
        dist.all_to_all_single(arriving_RL, counts_RL.contiguous(), group=self._group)
        sent, received = (counts.sum(1).tolist() for counts in (counts_RL, arriving_RL))
        arrived_AC = _all_to_all(x_AC, sent, received, self._group)
        local_L = torch.arange(experts.num_local_experts, device=x_AC.device)
        owner_A = local_L.repeat(self._size).repeat_interleave(arriving_RL.flatten())
        order_A = owner_A.argsort(stable=True)
        outputs_AC = experts(arrived_AC[order_A], arriving_RL.sum(0))
        outputs_AC = torch.empty_like(outputs_AC).index_copy(0, order_A, outputs_AC)
        return _all_to_all(outputs_AC, received, sent, self._group)

    def all_gather(self, part: Tensor) -> Tensor:
        """Return the parts of all ranks of the group, in the order of the experts."""
        parts = [torch.empty_like(part) for _ in range(self._size)]
        dist.all_gather(parts, part.contiguous(), group=self._group)
        return torch.cat(parts)


class _AllToAll(torch.autograd.Function):
    """Rows sent to and received from each rank of a group; gradients travel the way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
        ctx.backward_splits = (received, sent, group)
        arrived = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(arrived, rows.contiguous(), received, sent, group=group)
        return arrived

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(gradient, *ctx.backward_splits), None, None, None


def _all_to_all(rows: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
    """Send the next `sent[r]` rows to each rank r, and return the `received[r]` rows of each."""
    arrived: Tensor = _AllToAll.apply(rows, sent, received, group)  # type: ignore[no-untyped-call]
    return arrived


def shard_experts(module: nn.Module, size: int, rank: Rank) -> dict[str, ExpertShard]:
    """Keep this rank's part of the experts, and connect the layers with the other ranks.

    Returns:
        The parameters that are sharded, by name.

    Raises:
        InputError: the number of experts is not a multiple of the size.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, MoELayer)}
    for layer in layers.values():
        layer.exchange = LocalExchange(rank)
    if size == 1 or not layers:
        return {}
    for layer in layers.values():
        if layer.config.num_experts % size:
            raise InputError(
                f"{layer.config.num_experts} experts cannot be divided evenly among {size} workers",
                where="train.expert_parallel_size",
                remedy="choose a divisor of the number of experts",
            )
    group_name, group = create_expert_groups(size)
    place = rank.index % size
    shards: dict[str, ExpertShard] = {}
    for path, layer in layers.items():
        layer.exchange = AllToAllExchange(rank, group)
        for key, parameter in layer.experts.named_parameters():
            start = parameter.numel() // size * place
            holders = (rank.index // size, rank.world // size)
            shards[f"{path}.experts.{key}"] = ExpertShard(tuple(parameter.shape), start, *holders)
            parameter.data = parameter.data.chunk(size)[place].clone()
        layer.experts.num_local_experts //= size
        layer.experts.first_expert = place * layer.experts.num_local_experts
        mark_expert_layer(layer, layer.config.num_experts, size, group_name)
    return shards


def is_expert_sharded(parameter: Tensor) -> bool:
    """Return whether other ranks hold other parts of the parameter."""
    return getattr(parameter, "allreduce", True) is False


def expert_group_name(parameter: Tensor) -> str:
    """Return the name of the process group whose ranks hold all parts of a sharded parameter."""
    marked: Any = parameter
    return str(marked.group_name)


def all_reduce_over_experts(value: Tensor, group_name: str) -> Tensor:
    """Return the sum over the ranks of an expert-parallel group."""
    dist.all_reduce(value, group=expert_group(group_name))
    return value


@contextmanager
def gathered_experts(module: nn.Module) -> Iterator[None]:
    """Hold all experts on every rank for the time being, and use them without exchange."""
    parts = []
    for layer, exchange in _sharded_layers(module):
        for parameter in layer.experts.parameters():
            parts.append((parameter, parameter.data))
            parameter.data = exchange.all_gather(parameter.data)
    try:
        with without_exchange(module):
            yield
    finally:
        for parameter, part in parts:
            parameter.data = part


@contextmanager
def without_exchange(module: nn.Module) -> Iterator[None]:
    """Use the local experts only, for the time being; the caller has put all of them here."""
    with ExitStack() as stack:
        for layer, exchange in _sharded_layers(module):
            stack.enter_context(_all_local(layer, exchange))
        yield


@contextmanager
def _all_local(layer: MoELayer, exchange: AllToAllExchange) -> Iterator[None]:
    experts = layer.experts
    part = experts.first_expert, experts.num_local_experts
    experts.first_expert, experts.num_local_experts = 0, experts.num_experts
    layer.exchange = SingleProcessExchange()
    try:
        yield
    finally:
        experts.first_expert, experts.num_local_experts = part
        layer.exchange = exchange


def _sharded_layers(module: nn.Module) -> list[tuple[MoELayer, AllToAllExchange]]:
    layers = [layer for layer in module.modules() if isinstance(layer, MoELayer)]
    return [
        (layer, layer.exchange) for layer in layers if isinstance(layer.exchange, AllToAllExchange)
    ]
