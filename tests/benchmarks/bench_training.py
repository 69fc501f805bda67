"""Tokens a second of the training loop against a plain DistributedDataParallel loop, two ranks.

    python tests/benchmarks/bench_training.py [STEPS]

The quickstart's GPT (4 layers, width 128, context 128, vocabulary 4,096, global batch 32) and a
larger one (6 layers, width 384, context 256, vocabulary 8,192: 13.9 M parameters, global batch 4);
float32, AdamW, clip 1.0; one thread a rank. The peer is the same model under
DistributedDataParallel in the shortest loop that trains it, with torch's own cross-entropy of its
logits, without metrics, guards or checkpoints. All take turns within the same two processes, a step
each; medians over the turns. CPU seconds are those of rank 0: they hold on a machine that others
use too.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from pipeline.context import Context
from pipeline.stage import Workers
from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.gpt2.modeling_gpt2 import GPT
from stages.training.engine import Engine
from stages.training.objective import Batch, Loss, Trainable
from stages.training.ranks.rank import Rank
from stages.training.ranks.worker_group import WorkerGroup
from stages.training.supervised import SupervisedObjective
from stages.training.trainer import Trainer
from stages.training.training_params import TrainSection


@dataclass(frozen=True)
class Work:
    """What is trained, and the samples of a step."""

    config: GPTConfig
    batch: int


LARGE = Work(
    GPTConfig(vocab_size=8192, context_length=256, num_layers=6, hidden_size=384, num_heads=6), 4
)
QUICKSTART = Work(
    GPTConfig(vocab_size=4096, context_length=128, num_layers=4, hidden_size=128, num_heads=4), 32
)


class Windows:
    """Random tokens, a function of the index."""

    def __init__(self, config: GPTConfig) -> None:
        self.config = config

    def __getitem__(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        return torch.randint(
            0, self.config.vocab_size, (self.config.context_length + 1,), generator=generator
        )


@dataclass
class Language(SupervisedObjective):
    """Next-token prediction, as in `stages.pretrain`."""

    config: GPTConfig

    def open(self, rank: Rank) -> dict[str, Trainable]:
        self.train_samples = Windows(self.config)
        self.flops_per_token = float(self.config.flops_per_token)
        return {"model": Trainable(GPT(self.config))}

    def collate(self, samples: Sequence[Any]) -> Batch:
        windows = torch.stack(list(samples))
        return {"tokens": windows[:, :-1], "targets": windows[:, 1:]}

    def loss(self, model: Callable[..., Any], batch: Batch) -> Loss:
        return Loss(model(batch["tokens"], targets_BT=batch["targets"]))

    def export(self, engines: Any, out: Path) -> None:
        """Nothing is kept."""


def plain(rank: Rank, work: Work) -> Callable[[int], float]:
    """A step of the shortest loop there is."""
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(GPT(work.config))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.95), fused=True)
    windows, share = Windows(work.config), work.batch // rank.world

    def step(number: int) -> float:
        first = number * work.batch + rank.index * share
        batch = torch.stack([windows[first + i] for i in range(share)])
        logits = model(batch[:, :-1]).flatten(0, 1)
        loss = F.cross_entropy(logits, batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return rank.reduce_scalar(loss.item()) / rank.world

    return step


def ours(rank: Rank, zero: int, work: Work) -> Callable[[int], float]:
    """A step of the loop, with all that it does between steps."""
    settings = TrainSection.model_validate(
        {
            "steps": 10**6,
            "global_batch_size": work.batch,
            "zero_stage": zero,
            "warmup_steps": 0,
            "weight_decay": 0.01,
        }
        | {"lr_schedule": "constant", "checkpoint_interval": 0}
    )
    torch.manual_seed(0)
    objective = Language(work.config)
    trainables = objective.setup(rank, settings, 0)
    engines = {name: Engine(name, t, settings, rank) for name, t in trainables.items()}
    fit = Trainer(rank, objective, settings, 0, f"zero{zero}", engines, None)

    def step(number: int) -> float:
        fit._step()
        fit._after_step()
        return fit._last_metrics["loss"]

    return step


_steps: list[Callable[[int], float]] = []


def one_step(rank: Rank, number: int) -> float:
    """A step of the loop on the quickstart's model, which stays between calls; its loss."""
    if not _steps:
        _steps.append(ours(rank, 1, QUICKSTART))
    return _steps[0](number)


def contest(rank: Rank, work: Work, steps: int) -> dict[str, tuple[float, float, float]]:
    """Tokens a second, CPU seconds a step and the last loss, of each."""
    runs = {"DistributedDataParallel": plain(rank, work)}
    runs |= {f"ours, ZeRO-{zero}": ours(rank, zero, work) for zero in (0, 1, 2, 3)}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    losses = {}
    for number in range(steps + 2):
        for name, run in runs.items():
            rank.barrier()
            wall, cpu = time.perf_counter(), time.process_time()
            losses[name] = run(number)
            spent[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            rank.heartbeat()
    return {
        name: (
            work.batch
            * work.config.context_length
            / statistics.median(wall for wall, _ in times[2:]),
            statistics.median(cpu for _, cpu in times[2:]),
            losses[name],
        )
        for name, times in spent.items()
    }


def main(steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ctx = Context.local(Path(folder))
        with WorkerGroup(Workers(num=2), ctx, backend="local") as group:
            for work in (QUICKSTART, LARGE):
                show(work, group.run(contest, work, steps)[0])


def show(work: Work, found: dict[str, tuple[float, float, float]]) -> None:
    print(
        f"width {work.config.hidden_size}, {work.config.num_layers} layers, "
        f"global batch {work.batch}"
    )
    base = found["DistributedDataParallel"]
    for name, (rate, cpu, loss) in found.items():
        print(
            f"{name:26s} {rate:7.0f} tokens/s ({rate / base[0]:5.2f}x)"
            f"  {cpu * 1e3:6.0f} ms CPU a step ({cpu / base[1]:4.2f}x)  loss {loss:.4f}"
        )


if __name__ == "__main__":
    # The ranks import what they are to run by its module's name.
    sys.path.insert(0, str(Path(__file__).parent))
    import bench_training

    bench_training.main(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
