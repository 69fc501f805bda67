"""A GPT of 13.9 M parameters against transformers' GPT-2 and a plain PyTorch loop: one process.

    python tests/benchmarks/bench_gpt.py [--repeats N]

6 layers, width 384, 6 heads, context 256, vocabulary 8,192, tied head; 4 samples a step, float32,
two threads; fused AdamW, clip 1.0. Ours is the whole training loop with its guard, metrics and data
loader. The peers are the shortest loops that train the same function: transformers' own GPT-2 with
SDPA, and a GPT of torch's own layers. All take turns, a step each; medians. Then where a step of
ours goes, by what is computed, against the GEMM peak that this process measures.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.training.deepspeed_compat import import_deepspeed
from stages.training.ranks.rank import Rank
from stages.training.throughput import measure_peak_flops

Step = Callable[[int], float]
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "matmul", "linear"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "GELU, norms, embeddings": ("gelu", "layer_norm", "embedding"),
    "optimizer and clipping": ("adam", "foreach", "vector_norm", "linalg"),
}


class PlainBlock(nn.Module):
    """Pre-norm attention and feed-forward of torch's own layers."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.num_heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        gelu = nn.GELU(approximate="tanh")
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), gelu, nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        qkv = self.qkv(self.norms[0](x)).view(B, T, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp(self.norms[1](x))


class PlainGPT(nn.Module):
    """GPT-2 as one would write it down."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.places = nn.Embedding(config.context_length, config.hidden_size)
        self.blocks = nn.Sequential(*[PlainBlock(config) for _ in range(config.num_layers)])
        self.norm = nn.LayerNorm(config.hidden_size)
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        logits = F.linear(self.norm(self.blocks(x)), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def huggingface(config: GPTConfig) -> Callable[[Tensor, Tensor], Tensor]:
    from vision import stand_in

    stand_in()  # transformers looks for it
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.context_length, n_embd=config.hidden_size,
        n_layer=config.num_layers, n_head=config.num_heads, resid_pdrop=0, embd_pdrop=0,
        attn_pdrop=0, attn_implementation="sdpa",
    )  # fmt: skip
    model = GPT2LMHeadModel(shape).train()

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        logits = model(tokens, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    loss.model = model  # type: ignore[attr-defined]
    return loss


def plain_step(call: Callable[[Tensor, Tensor], Tensor], model: nn.Module, work: object) -> Step:
    from bench_training import Windows

    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.95), fused=True)
    windows = Windows(work.config)

    def step(number: int) -> float:
        batch = torch.stack([windows[number * work.batch + i] for i in range(work.batch)])
        loss = call(batch[:, :-1], batch[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def shares(step: Step) -> dict[str, float]:
    """Of a step's CPU time, by what was computed."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for number in range(3):
            step(number)
    spent: Counter[str] = Counter()
    for event in profile.key_averages():
        name = event.key.removeprefix("aten::").lstrip("_")
        kind = next((k for k, parts in KINDS.items() if name.startswith(parts)), "the rest")
        spent[kind] += event.self_cpu_time_total
    return {kind: time / spent.total() for kind, time in spent.most_common()}


def main(repeats: int) -> None:
    from bench_training import LARGE, ours

    import_deepspeed()
    torch.set_num_threads(2)
    rank, work = Rank.single_process(), LARGE
    plain, peer = PlainGPT(work.config), huggingface(work.config)
    steps: dict[str, Step] = {
        "Headwater": ours(rank, 0, work),
        "plain PyTorch": plain_step(plain, plain, work),
        "transformers GPT-2": plain_step(peer, peer.model, work),  # type: ignore[attr-defined]
    }
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(repeats + 2):
        for name, step in steps.items():
            begun = time.perf_counter()
            step(number)
            if number > 1:
                spent[name].append(time.perf_counter() - begun)
    peak = measure_peak_flops(rank.device, torch.float32)
    tokens = work.batch * work.config.context_length
    rates = {name: tokens / statistics.median(times) for name, times in spent.items()}
    print(f"measured GEMM peak {peak / 1e9:.0f} GFLOP/s, {work.config.parameters / 1e6:.1f} M")
    for name, rate in rates.items():
        share = rate * work.config.flops_per_token / peak
        print(
            f"{name:20s} {rate:7.0f} tokens/s  MFU {100 * share:3.0f} %"
            f"  ours is {rates['Headwater'] / rate:5.2f}x"
        )
    told = ", ".join(f"{kind} {100 * s:.0f} %" for kind, s in shares(steps["Headwater"]).items())
    print(f"a step of ours: {told}")
    rank.leave()


if __name__ == "__main__":
    # What is trained is imported from beside this file.
    sys.path.insert(0, str(Path(__file__).parent))
    asked = argparse.ArgumentParser()
    asked.add_argument("--repeats", type=int, default=9)
    main(asked.parse_args().repeats)
