"""Memorising random facts: where capacity binds, experts learn sooner at equal FLOPs a token.

Two key tokens stand for one of 256 values, 20,000 times over. Two layers of width 64 without
attention, whose first product is 256 wide, are set against the same two with eight experts each,
top-1, which do no more work on a token (the claim of Fedus et al. 2021, figure 1, in small).

All inputs share a direction, as tokens of a text do: without the balance loss a router soon sends
most of them to the same experts.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.models.language_model import Routing
from stages.models.language_model_config import ExpertsConfig
from stages.models.llama.configuration_llama import LlamaConfig
from stages.models.llama.modeling_llama import LlamaMLP, init_matrix
from stages.models.moe import MoELayer

KEYS, VALUES, FACTS, BATCH = 200, 256, 20_000, 1024
LAYERS, WIDTH, INNER, SHARED = 2, 64, 128, 3.0


class Memorised(NamedTuple):
    """How far a net came."""

    loss: float
    """Nats a fact, a running mean over about 20 steps."""
    steps: int
    seconds: float
    busiest: float
    """Load of the busiest expert over an even share, at the end."""


class Memory(nn.Module):
    """Key tokens -> logits of the values, with `experts` a layer, or dense if there are none."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.keys = nn.Embedding(2 * KEYS, WIDTH)
        self.shared = nn.Parameter(SHARED * torch.randn(WIDTH))
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(LAYERS + 1))
        self.layers = nn.ModuleList(_layer(experts) for _ in range(LAYERS))
        self.values = nn.Linear(WIDTH, VALUES, bias=False)
        nn.init.normal_(self.values.weight, std=0.02)

    def forward(self, keys_N2: Tensor) -> tuple[Tensor, list[Routing]]:
        """Logits (N, values) and what each layer's router did."""
        x_1NC = (self.keys(keys_N2).sum(1) + self.shared)[None]
        routing = []
        for norm, layer in zip(self.norms, self.layers, strict=False):
            y_1NC, routed = layer(norm(x_1NC))
            x_1NC = x_1NC + y_1NC
            routing += [routed] if routed else []
        return self.values(self.norms[-1](x_1NC))[0], routing


def memorise(experts: int, steps: int, *, until: float = 0.0, balance: float = 1e-2) -> Memorised:
    """Train for `steps`, or until the loss is at most `until`."""
    generator = torch.Generator().manual_seed(1)
    pairs_N = torch.randperm(KEYS * KEYS, generator=generator)[:FACTS]
    keys_N2 = torch.stack([pairs_N // KEYS, KEYS + pairs_N % KEYS], 1)
    values_N = torch.randint(0, VALUES, (FACTS,), generator=generator)
    torch.manual_seed(0)
    model = Memory(experts)
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    begun, smooth, routing = time.perf_counter(), float("nan"), list[Routing]()
    for step in range(1, steps + 1):
        chosen = torch.randint(0, FACTS, (BATCH,), generator=generator)
        logits, routing = model(keys_N2[chosen])
        loss = F.cross_entropy(logits, values_N[chosen])
        adam.zero_grad()
        (loss + sum(balance * layer.balance for layer in routing)).backward()
        adam.step()
        smooth = loss.item() if step == 1 else 0.95 * smooth + 0.05 * loss.item()
        if smooth <= until:
            break
    busiest = max((layer.load_E.max().item() * experts for layer in routing), default=0.0)
    return Memorised(smooth, step, time.perf_counter() - begun, busiest)


@torch.no_grad()
def _layer(experts: int) -> nn.Module:
    """A feed-forward layer, or a Switch of such, which starts with variance 1 / fan-in."""

    def draw(weight: Tensor) -> None:
        init_matrix(weight, 0.0, 1.0)

    if not experts:
        shape = LlamaConfig(VALUES, 2, LAYERS, WIDTH, 2, 2, INNER, head_size=32)
        dense = LlamaMLP(shape)
        for weight in dense.parameters():
            draw(weight)
        return dense
    config = ExpertsConfig(
        num_experts=experts, moe_every=1, capacity_factor=None, aux_loss_scope="batch"
    )
    switch = MoELayer(WIDTH, INNER, config)
    draw(switch.router.weight)
    switch.experts.reset(draw, draw)
    return switch
