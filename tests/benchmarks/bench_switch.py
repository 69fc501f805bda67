"""The Switch layer against DeepSpeed's and against a dense layer of equal FLOPs: one process.

    python tests/benchmarks/bench_switch.py [--repeats N]

Width 384, SwiGLU of 1,024 (each expert), top-1, float32, two threads; forward and backward of one
layer, router, dispatch and losses included. All take turns; medians. DeepSpeed's layer gets the
same feed-forward module as expert, capacity factor 1.25, and no random token selection.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from torch import Tensor, nn

from stages.models.fused_ops import swiglu
from stages.models.language_model_config import ExpertsConfig
from stages.models.moe import MoELayer
from stages.training.deepspeed_compat import import_deepspeed
from stages.training.ranks.rank import Rank

WIDTH, INNER, SEQUENCE = 384, 1024, 256
SHAPES = ((1024, 4), (4096, 4), (4096, 16))


class Dense(nn.Module):
    """The feed-forward layer of `stages.models.llama.modeling_llama`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up = nn.Linear(WIDTH, 2 * INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(swiglu(self.gate_up(x)))


def switch(experts: int, capacity_factor: float | None) -> Callable[[Tensor], Tensor]:
    config = ExpertsConfig(num_experts=experts, capacity_factor=capacity_factor)
    layer = MoELayer(WIDTH, INNER, config)
    layer.experts.reset(lambda w: w.normal_(std=0.02), lambda w: w.normal_(std=0.02))

    def call(x: Tensor) -> Tensor:
        y, routing = layer(x)
        return y.square().mean() + 0.01 * routing.balance

    return call


def deepspeed_layer(experts: int) -> Callable[[Tensor], Tensor]:
    from deepspeed.moe.layer import MoE

    layer = MoE(WIDTH, Dense(), experts, k=1, capacity_factor=1.25, min_capacity=1, use_rts=False)
    layer.set_deepspeed_parallelism()

    def call(x: Tensor) -> Tensor:
        y, balance, _ = layer(x)
        return y.square().mean() + 0.01 * balance

    return call


def dense() -> Callable[[Tensor], Tensor]:
    layer = Dense()
    return lambda x: layer(x).square().mean()


def seconds(call: Callable[[Tensor], Tensor], tokens: int) -> float:
    x = torch.randn(tokens // SEQUENCE, SEQUENCE, WIDTH, requires_grad=True)
    begun = time.perf_counter()
    call(x).backward()
    return time.perf_counter() - begun


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--repeats", type=int, default=9)
    repeats = asked.parse_args().repeats
    import_deepspeed()
    torch.set_num_threads(2)
    rank = Rank.single_process()
    import deepspeed

    deepspeed.init_distributed(verbose=False)
    for tokens, experts in SHAPES:
        layers = {
            "dense, equal FLOPs": dense(),
            "ours, capacity 1.25": switch(experts, 1.25),
            "ours, dropless": switch(experts, None),
            "DeepSpeed, capacity 1.25": deepspeed_layer(experts),
        }
        spent: dict[str, list[float]] = {name: [] for name in layers}
        for turn in range(repeats + 1):
            for name, call in layers.items():
                took = seconds(call, tokens)
                if turn:  # the first warms up
                    spent[name].append(took)
        medians = {name: statistics.median(times) for name, times in spent.items()}
        print(f"{tokens} tokens, {experts} experts")
        for name, took in medians.items():
            ratios = f"{took / medians['dense, equal FLOPs']:5.2f} of dense"
            peer = medians["DeepSpeed, capacity 1.25"] / took
            print(f"  {name:26s} {1000 * took:8.1f} ms  {ratios}  {peer:5.2f}x DeepSpeed")
    rank.leave()


if __name__ == "__main__":
    main()
