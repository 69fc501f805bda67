"""Experts spread over processes: who holds which, how tokens get there, what DeepSpeed must know.

With expert parallelism of p, p neighbouring ranks hold the experts of each layer together, the
r-th of them the r-th share; ranks with the same share average its gradients (Fedus et al. 2021,
section 5; Rajbhandari et al. 2022, section 5.2). Tokens travel by all-to-all, as many as there are.

DeepSpeed tells expert weights by marks, and layers by class: what it takes for its own layer it
reduces, shards and measures right at every ZeRO stage. Its layer is not used, nor its checkpoints:
here an expert's numbers are saved at their place in the tensor of all experts, so that a checkpoint
knows nothing of who held what.
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
from stages.models.moe import Experts, SingleProcessExchange, Switch

if TYPE_CHECKING:
    from stages.training.ranks.rank import Rank


@dataclass(frozen=True)
class Share:
    """Which part of a parameter this rank holds, and with whom it holds the same."""

    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    """Where this rank's part begins in the flattened whole."""
    index: int
    """This rank among those that hold the same part."""
    of: int
    """How many hold it."""


class Together:
    """The exchange of ranks that each hold all experts: only loads are added up."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank

    def total(self, counts_E: Tensor) -> Tensor:
        """Over all ranks, in training: an evaluation may be one rank's alone."""
        if self._rank.world == 1 or not torch.is_grad_enabled():
            return counts_E
        counts_E = counts_E.clone()
        dist.all_reduce(counts_E)
        return counts_E

    def apply(self, experts: Experts, x_AC: Tensor, counts_E: Tensor) -> Tensor:
        """What they make of the tokens."""
        answers: Tensor = experts(x_AC, counts_E)
        return answers


class Apart(Together):
    """The exchange of ranks that hold a share of the experts each."""

    def __init__(self, rank: Rank, group: Any) -> None:
        super().__init__(rank)
        self._group, self._size = group, dist.get_world_size(group)

    def apply(self, experts: Experts, x_AC: Tensor, counts_E: Tensor) -> Tensor:
        """Send the tokens to their experts, and the answers back.

        Tokens arrive by rank of origin and expert; L experts live here, R ranks send.
        """
        counts_RL = counts_E.view(self._size, experts.num_local_experts)
        arriving_RL = torch.empty_like(counts_RL)
        dist.all_to_all_single(arriving_RL, counts_RL.contiguous(), group=self._group)
        away, here = (counts.sum(1).tolist() for counts in (counts_RL, arriving_RL))
        arrived_AC = _send(x_AC, away, here, self._group)
        local_L = torch.arange(experts.num_local_experts, device=x_AC.device)
        owner_A = local_L.repeat(self._size).repeat_interleave(arriving_RL.flatten())
        order_A = owner_A.argsort(stable=True)
        answers_AC = experts(arrived_AC[order_A], arriving_RL.sum(0))
        answers_AC = torch.empty_like(answers_AC).index_copy(0, order_A, answers_AC)
        return _send(answers_AC, here, away, self._group)

    def everything(self, part: Tensor) -> Tensor:
        """The parts of all ranks of the group, in the order of the experts."""
        parts = [torch.empty_like(part) for _ in range(self._size)]
        dist.all_gather(parts, part.contiguous(), group=self._group)
        return torch.cat(parts)


class _AllToAll(torch.autograd.Function):
    """Rows to and from each rank of a group; gradients travel the way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, out: list[int], back: list[int], group: Any) -> Tensor:
        ctx.way = (back, out, group)
        found = rows.new_empty(sum(back), *rows.shape[1:])
        dist.all_to_all_single(found, rows.contiguous(), back, out, group=group)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _send(gradient, *ctx.way), None, None, None


def _send(rows: Tensor, out: list[int], back: list[int], group: Any) -> Tensor:
    """`out` rows go to each rank in order, `back` rows come from each."""
    found: Tensor = _AllToAll.apply(rows, out, back, group)  # type: ignore[no-untyped-call]
    return found


def spread(module: nn.Module, size: int, rank: Rank) -> dict[str, Share]:
    """Leave each rank its experts, and let it reach the others.

    Returns:
        The parameters of which a rank holds a part, by name.

    Raises:
        InputError: the experts do not divide by the size.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, Switch)}
    for layer in layers.values():
        layer.exchange = Together(rank)
    if size == 1 or not layers:
        return {}
    for layer in layers.values():
        if layer.config.num_experts % size:
            raise InputError(
                f"{layer.config.num_experts} experts cannot be spread evenly over {size} workers",
                where="train.expert_parallel_size",
                remedy="choose a divisor of the experts",
            )
    import deepspeed
    from deepspeed.utils import groups

    deepspeed.init_distributed(verbose=False)  # takes over the group that is there
    groups._create_expert_and_data_parallel(size)
    name = f"ep_size_{size}"
    group = groups._get_expert_parallel_group(name)
    shares: dict[str, Share] = {}
    for path, layer in layers.items():
        layer.exchange = Apart(rank, group)
        for key, parameter in layer.experts.named_parameters():
            part = parameter.numel() // size
            whole, start = tuple(parameter.shape), part * (rank.index % size)
            among = (rank.index // size, rank.world // size)
            shares[f"{path}.experts.{key}"] = Share(whole, start, *among)
        _keep(layer.experts, size, rank.index % size)
        _mark(layer, size, name)
    return shares


def _keep(experts: Experts, size: int, index: int) -> None:
    experts.num_local_experts //= size
    experts.first_expert = index * experts.num_local_experts
    for parameter in experts.parameters():
        parameter.data = parameter.data.chunk(size)[index].clone()


def _mark(layer: Switch, size: int, group: str) -> None:
    """Say in DeepSpeed's way that the weights of these experts are this rank's alone."""
    from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer

    known: Any = layer
    known.num_experts, known.ep_size, known.ep_group_name = layer.config.num_experts, size, group
    known.set_deepspeed_parallelism = lambda *_, **__: None
    layer.__class__ = type("Switch", (Switch, AutoEPMoELayer), {})
    for parameter in layer.experts.parameters():
        marked: Any = parameter
        marked.allreduce, marked.group_name = False, group
        marked.ds_zero_placement_family = "autoep_expert"
        marked.ds_zero_partition_group_name = group


def is_apart(parameter: Tensor) -> bool:
    """Whether other ranks hold other parts of it."""
    return getattr(parameter, "allreduce", True) is False


def total_over_experts(value: Tensor, name: str) -> Tensor:
    """The sum over the ranks of an expert-parallel group, which hold all experts together."""
    from deepspeed.utils import groups

    dist.all_reduce(value, group=groups._get_expert_parallel_group(name))
    return value


def group_name(parameter: Tensor) -> str:
    """Of the group that holds all parts of a parameter that is apart."""
    known: Any = parameter
    return str(known.group_name)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Every rank holds all experts for the time being, to look at them or to use them alone."""
    parts = []
    for layer, exchange in _spread(module):
        for parameter in layer.experts.parameters():
            parts.append((parameter, parameter.data))
            parameter.data = exchange.everything(parameter.data)
    try:
        with alone(module):
            yield
    finally:
        for parameter, part in parts:
            parameter.data = part


@contextmanager
def alone(module: nn.Module) -> Iterator[None]:
    """Layers ask no other rank for the time being: somebody put all experts here."""
    with ExitStack() as held:
        for layer, exchange in _spread(module):
            held.enter_context(_alone(layer, exchange))
        yield


@contextmanager
def _alone(layer: Switch, exchange: Apart) -> Iterator[None]:
    experts = layer.experts
    place = experts.first_expert, experts.num_local_experts
    experts.first_expert, experts.num_local_experts, layer.exchange = (
        0,
        experts.num_experts,
        SingleProcessExchange(),
    )
    try:
        yield
    finally:
        experts.first_expert, experts.num_local_experts = place
        layer.exchange = exchange


def _spread(module: nn.Module) -> list[tuple[Switch, Apart]]:
    """The layers of which this rank holds a part, and how they reach the others."""
    layers = [layer for layer in module.modules() if isinstance(layer, Switch)]
    return [(layer, layer.exchange) for layer in layers if isinstance(layer.exchange, Apart)]
