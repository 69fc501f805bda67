"""A trained module without DeepSpeed: torch's AdamW under the shards of ZeRO stage 0."""

from __future__ import annotations

import torch
from torch import nn

from stages.training.ranks.rank import Rank
from stages.training.zero_state import Fragment, PartitionedState, build_partitioned_state


class PlainEngine:
    """The part of an engine that checkpoints use, on one rank of `world`."""

    zero_stage = 0

    def __init__(self, seed: int = 0, rank: Rank | None = None, width: int = 5) -> None:
        torch.manual_seed(seed)
        self.module = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))
        parameters = dict(self.module.named_parameters())
        group = {"params": list(parameters.values()), "states": ("exp_avg", "exp_avg_sq")}
        self.adam = torch.optim.AdamW([group], lr=0.01, fused=True)
        self.shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        self.state: PartitionedState = build_partitioned_state(
            0, None, self.adam, dict(parameters), rank or Rank()
        )

    @property
    def updates(self) -> float:
        return self.state.updates

    def fragments(self) -> list[Fragment]:
        return self.state.saved

    def train(self, steps: int, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            x = torch.randn(8, 4, generator=generator)
            self.adam.zero_grad()
            (self.module(x) - x.sum(1, keepdim=True)).square().mean().backward()
            self.adam.step()

    def copied_state(self) -> list[torch.Tensor]:
        """Return copies of weights, states and counts."""
        held = [view.clone() for f in self.state.local for view in f.views.values()]
        return [*held, torch.tensor(self.updates)]


def same(one: PlainEngine, other: PlainEngine) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(one.copied_state(), other.copied_state(), strict=True)
    )
