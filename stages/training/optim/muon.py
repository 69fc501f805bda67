"""Muon: the update of a matrix is its momentum with all singular values brought near 1.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon): five Newton-Schulz steps on the
Nesterov momentum. Scaled by 0.2 * sqrt(max(rows, columns)), as by Liu et al. 2025 ("Muon is
scalable for LLM training", section 2.2), updates are as large as AdamW's, whose learning rate and
weight decay then serve both. AdamW keeps everything that is no matrix of a repeated block:
embeddings, heads, routers, gains and biases.

Experts are matrices one by one; a fused projection (query, key and value; gate and up) counts as
one matrix, as in torch's own.

An update needs whole matrices. At ZeRO 0 every rank computes all. At ZeRO 1 and 2 a rank keeps a
range of the flattened matrices and of their momentum: the ranges are gathered for the time of the
update, and each rank computes the matrices that its range touches (Liu et al. 2025, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from stages.training.optim.adamw import AdamW

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
EPS = 1e-7
MARK = "muon"
"""Of the parameter groups that hold matrices: how their whole is come by, or None where it is
there."""


class Muon(AdamW):
    """Muon for the groups that are marked, AdamW for the others."""

    precision: torch.dtype | None = None
    """Of the Newton-Schulz steps; None: bfloat16 on a GPU, and float32 where that is slow."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the groups that are set, if it is admitted."""
        if not self.admit(list(self._gradients())):
            return
        groups = self.param_groups
        for group in groups:
            if MARK in group:
                self._turn(group)
        self.param_groups = [group for group in groups if MARK not in group]
        if self.param_groups:
            self._plain_step()
        self.param_groups = groups

    def _turn(self, group: dict[str, Any]) -> None:
        """Update the matrices of a group, or this rank's range of them."""
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            state["step"] += 1
            state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
            update = parameter.grad.lerp(state["momentum"], MOMENTUM)
            ranges: Ranges | None = group[MARK]
            turn = ranges.turned if ranges else orthogonal
            turned = turn(update, self.precision or _precision(update.device))
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(turned, alpha=-group["lr"])


def _precision(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def orthogonal(update: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Newton-Schulz steps towards the nearest orthogonal matrix, scaled as AdamW's updates are.

    Args:
        update: [rows, columns] or [matrices, rows, columns].
        dtype: of the products.

    Returns:
        The same shape, in the update's dtype.
    """
    rows, columns = update.shape[-2:]
    a, b, c = COEFFICIENTS
    x = update.to(dtype)
    x = x.mT if rows > columns else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    fused = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = fused(x, fused(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.mT if rows > columns else x
    scaled: Tensor = x.to(update.dtype) * (0.2 * max(rows, columns) ** 0.5)
    return scaled


@dataclass(frozen=True)
class Ranges:
    """A flattened group of matrices of which each of some ranks keeps a range of equal length."""

    places: Sequence[tuple[int, tuple[int, ...]]]
    """Where in the flattened group each parameter begins, and its shape."""
    group: Any
    """The process group of those ranks."""

    def turned(self, mine: Tensor, dtype: torch.dtype) -> Tensor:
        """This rank's range of the scaled updates, from its range of the momentum."""
        whole = mine.new_empty(mine.numel() * dist.get_world_size(self.group))
        dist.all_gather_into_tensor(whole, mine, group=self.group)
        low = dist.get_rank(self.group) * mine.numel()
        found = torch.zeros_like(mine)
        for start, shape in self._matrices():
            stop = start + shape[0] * shape[1]
            a, b = max(start, low), min(stop, low + mine.numel())
            if a < b:
                turned = orthogonal(whole[start:stop].view(shape), dtype).reshape(-1)
                found[a - low : b - low] = turned[a - start : b - start]
        return found

    def _matrices(self) -> Iterator[tuple[int, tuple[int, int]]]:
        for start, shape in self.places:
            rows, columns = shape[-2:]
            for i in range(shape[0] if len(shape) == 3 else 1):
                yield start + i * rows * columns, (rows, columns)


def matrices(module: nn.Module) -> set[str]:
    """The names of the parameters that are Muon's: in a list of blocks, and no router."""
    lists = [f"{n}." for n, m in module.named_modules() if isinstance(m, nn.ModuleList)]
    return {
        name
        for name, parameter in module.named_parameters()
        if parameter.ndim in (2, 3)
        and any(name.startswith(blocks) for blocks in lists)
        and "router" not in name.split(".")
    }


def know_ranges(optimizer: Muon, zero: Any) -> None:
    """Tell the groups that DeepSpeed has flattened (ZeRO 1 and 2) where their matrices lie."""
    for i, group in enumerate(optimizer.param_groups):
        if MARK in group:
            shapes = [tuple(p.shape) for p in zero.round_robin_bit16_groups[i]]
            places = list(zip(zero.round_robin_bit16_offsets[i], shapes, strict=True))
            group[MARK] = Ranges(places, zero.real_dp_process_group[i])
