"""Memorising random facts: where capacity binds, experts learn sooner at equal FLOPs a token.

Two key tokens stand for one of 256 values, 20,000 times over. A dense decoder of two layers (width
64, hidden 256) is set against the same with eight experts a layer, top-1, which does no more work
on a token (the claim of Fedus et al. 2021, figure 1, in small).
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from stages.models.config import DecoderConfig, ExpertsConfig
from stages.models.decoder import Decoder
from stages.models.language import Trace

KEYS, VALUES, FACTS, BATCH = 200, 256, 20_000, 1024


class Memorised(NamedTuple):
    """How far a net came."""

    loss: float
    """Nats a fact, a running mean over about 20 steps."""
    steps: int
    seconds: float
    busiest: float
    """Load of the busiest expert over an even share, at the end."""


def memorise(experts: int, steps: int, *, until: float = 0.0, balance: float = 1e-2) -> Memorised:
    """Train for `steps`, or until the loss is at most `until`."""
    generator = torch.Generator().manual_seed(1)
    pairs = torch.randperm(KEYS * KEYS, generator=generator)[:FACTS]
    keys_N2 = torch.stack([pairs // KEYS, pairs % KEYS], 1)
    values_N = KEYS + torch.randint(0, VALUES, (FACTS,), generator=generator)
    torch.manual_seed(0)
    model = Decoder(_shape(experts, balance))
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    begun, smooth, busiest = time.perf_counter(), float("nan"), 0.0
    for step in range(1, steps + 1):
        chosen = torch.randint(0, FACTS, (BATCH,), generator=generator)
        targets_B2 = torch.full((BATCH, 2), -100)
        targets_B2[:, 1] = values_N[chosen]
        trace = Trace()
        total = model(keys_N2[chosen], targets_BT=targets_B2, trace=trace) / BATCH
        upkeep = sum(balance * layer.balance for layer in trace.routing)
        adam.zero_grad()
        (total + upkeep).backward()
        adam.step()
        loss = total.item()
        smooth = loss if step == 1 else 0.95 * smooth + 0.05 * loss
        if smooth <= until:
            break
    if trace.routing:
        busiest = max(layer.load_E.max().item() * experts for layer in trace.routing)
    return Memorised(smooth, step, time.perf_counter() - begun, busiest)


def _shape(experts: int, balance: float) -> DecoderConfig:
    spread = ExpertsConfig(
        num=experts, every=1, capacity_factor=None, balance_coef=balance, balance_over="batch"
    )
    return DecoderConfig(
        KEYS + VALUES, context=2, layers=2, width=64, heads=2, kv_heads=2, inner=256, head_size=32,
        qk_norm=True, experts=spread if experts else None,
    )  # fmt: skip
