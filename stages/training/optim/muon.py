"""Muon: the update of a matrix is its momentum with all singular values brought near 1.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon): five Newton-Schulz iterations on the
Nesterov momentum. Scaled by 0.2 * sqrt(max(rows, columns)), as in Liu et al. 2025 ("Muon is
scalable for LLM training", section 2.2), updates are as large as AdamW's, so that one learning rate
and one weight decay serve both. AdamW updates everything that is not a matrix of a repeated block:
embeddings, heads, routers, gains and biases.

Experts are separate matrices; a fused projection (query, key and value; gate and up) counts as one
matrix, as in torch's Muon.

An update needs whole matrices. At ZeRO 0 every rank computes all of them. At ZeRO 1 and 2 a rank
keeps a range of the flattened matrices and of their momentum: the ranges are gathered for the
update, and each rank computes the matrices that its range touches (Liu et al. 2025, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from stages.training.deepspeed_compat import group_layout
from stages.training.optim.hooked_optimizer import AdamW, OptimizerSettings

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-7


class Muon(AdamW):
    """Muon for the parameter groups of block matrices, AdamW for the others."""

    precision: torch.dtype | None = None
    """Data type of the Newton-Schulz iterations. Default: bfloat16 on a GPU, else float32."""

    def update(self) -> None:
        """Update the parameters that have a gradient."""
        groups = self.param_groups
        for group in groups:
            if group["block_matrices"]:
                self._muon_update(group)
        self.param_groups = [group for group in groups if not group["block_matrices"]]
        if self.param_groups:
            super().update()
        self.param_groups = groups

    def attach_partitions(self, zero_optimizer: Any) -> None:
        """Record where the matrices lie in the groups that ZeRO 1 and 2 have flattened."""
        for i, group in enumerate(self.param_groups):
            if group["block_matrices"]:
                group["partition"] = PartitionedGroup(*group_layout(zero_optimizer, i))

    def _muon_update(self, group: dict[str, Any]) -> None:
        """Update the matrices of a group, or this rank's range of them."""
        partition: PartitionedGroup | None = group.get("partition")
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            state["step"] += 1
            state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
            momentum = parameter.grad.lerp(state["momentum"], MOMENTUM)
            dtype = self.precision or (torch.bfloat16 if momentum.is_cuda else torch.float32)
            if partition is None:
                update = orthogonalize(momentum, dtype)
            else:
                update = partition.orthogonalize(momentum, dtype)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"])


def build_muon(groups: list[dict[str, Any]], settings: OptimizerSettings) -> Muon:
    """Build the optimizer of these parameter groups."""
    betas = (settings.beta1, settings.beta2)
    return Muon(groups, lr=settings.lr, betas=betas, eps=settings.eps, fused=True)


def orthogonalize(momentum: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the momentum after Newton-Schulz iterations towards the nearest orthogonal matrix,
    scaled to the size of AdamW's updates.

    Args:
        momentum: [rows, columns] or [matrices, rows, columns].
        dtype: data type of the products.

    Returns:
        A tensor of the same shape and data type.
    """
    rows, columns = momentum.shape[-2:]
    a, b, c = COEFFICIENTS
    x = momentum.to(dtype)
    x = x.mT if rows > columns else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    fused = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = fused(x, fused(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.mT if rows > columns else x
    scaled: Tensor = x.to(momentum.dtype) * (0.2 * max(rows, columns) ** 0.5)
    return scaled


@dataclass(frozen=True)
class PartitionedGroup:
    """A flattened group of matrices; each rank of a process group keeps a range of equal length."""

    places: Sequence[tuple[int, tuple[int, ...]]]
    """Start in the flattened group, and shape, of each parameter."""
    process_group: Any

    def orthogonalize(self, momentum: Tensor, dtype: torch.dtype) -> Tensor:
        """Return this rank's range of the updates, from its range of the momentum."""
        count = momentum.numel()
        whole = momentum.new_empty(count * dist.get_world_size(self.process_group))
        dist.all_gather_into_tensor(whole, momentum, group=self.process_group)
        low = dist.get_rank(self.process_group) * count
        updates = torch.zeros_like(momentum)
        for start, shape in self._matrices():
            stop = start + shape[0] * shape[1]
            a, b = max(start, low), min(stop, low + count)
            if a < b:
                update = orthogonalize(whole[start:stop].view(shape), dtype).reshape(-1)
                updates[a - low : b - low] = update[a - start : b - start]
        return updates

    def _matrices(self) -> Iterator[tuple[int, tuple[int, int]]]:
        for start, shape in self.places:
            rows, columns = shape[-2:]
            for i in range(shape[0] if len(shape) == 3 else 1):
                yield start + i * rows * columns, (rows, columns)
