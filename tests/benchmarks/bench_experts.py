"""A training step with experts spread over two ranks against the dense one of equal FLOPs.

    python tests/benchmarks/bench_experts.py [STEPS]

The modern block in 6 layers, width 384, hidden 1,024, context 256, vocabulary 8,192; 4 experts,
top-1, in every second block, capacity factor 1.25, expert parallelism 2, so that half of the tokens
cross to the other rank and back; ZeRO-1, float32, one thread a rank. Both take turns within the
same two processes, a step each; medians over the turns.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.context import Context
from pipeline.stage import Workers
from stages.models.language_model_config import ExpertsConfig
from stages.models.llama.configuration_llama import LlamaConfig
from stages.objectives.causal_lm import CausalLMObjective
from stages.training.engine import Engine
from stages.training.objective import Trainable
from stages.training.ranks.rank import Rank
from stages.training.ranks.worker_group import WorkerGroup
from stages.training.trainer import Trainer
from stages.training.training_params import TrainSection

BATCHES = (4, 16)
DENSE = LlamaConfig(
    vocab_size=8192,
    context_length=256,
    num_layers=6,
    hidden_size=384,
    num_heads=6,
    num_kv_heads=6,
    intermediate_size=1024,
    head_size=64,
)
SWITCH = replace(DENSE, experts=ExpertsConfig(num_experts=4, moe_every=2), init_scale=0.1)


@dataclass
class Windowed(CausalLMObjective):
    """CausalLMObjective on random tokens."""

    corpus: Any = None
    tokenizer_folder: Path = Path()

    def open(self, rank: Rank) -> dict[str, Trainable]:
        from bench_training import Windows

        from stages.models.llama.modeling_llama import Llama

        self.train_samples = Windows(self.config)
        self.flops_per_token = float(self.config.flops_per_token)
        return {"model": Trainable(Llama(self.config))}

    def collate(self, samples: Any) -> Any:
        windows = torch.stack(list(samples))
        return {"tokens": windows[:, :-1], "targets": windows[:, 1:]}


def trainer(rank: Rank, config: LlamaConfig, batch: int) -> Callable[[], None]:
    """A step of the loop."""
    spread = rank.world if config.experts else 1
    made = {
        "steps": 10**6,
        "global_batch_size": batch,
        "zero_stage": 1,
        "expert_parallel_size": spread,
    }
    settings = TrainSection.model_validate({**made, "warmup_steps": 0, "checkpoint_interval": 0})
    torch.manual_seed(0)
    objective = Windowed(config)
    trainables = objective.setup(rank, settings, 0)
    engines = {name: Engine(name, t, settings, rank) for name, t in trainables.items()}
    fit = Trainer(rank, objective, settings, 0, f"experts{spread}", engines, None)

    def step() -> None:
        fit._step()
        fit._after_step()

    return step


def contest(rank: Rank, batch: int, steps: int) -> dict[str, float]:
    """Seconds a step."""
    runs = {"dense": trainer(rank, DENSE, batch), "experts": trainer(rank, SWITCH, batch)}
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(steps + 2):
        for name, run in runs.items():
            rank.barrier()
            begun = time.perf_counter()
            run()
            rank.barrier()
            if number > 1:
                spent[name].append(time.perf_counter() - begun)
            rank.heartbeat()
    return {name: statistics.median(times) for name, times in spent.items()}


def main(steps: int) -> None:
    millions = [config.parameters / 1e6 for config in (DENSE, SWITCH)]
    print("dense {:.1f} M parameters, with experts {:.1f} M".format(*millions))
    with tempfile.TemporaryDirectory() as folder:
        ctx = Context.local(Path(folder))
        with WorkerGroup(Workers(num=2), ctx, backend="local") as group:
            for batch in BATCHES:
                found = group.run(contest, batch, steps)[0]
                ratio = found["experts"] / found["dense"]
                dense, experts = (f"{1000 * found[name]:6.0f} ms" for name in ("dense", "experts"))
                print(f"global batch {batch:2d}: dense {dense}, experts {experts} ({ratio:4.2f}x)")


if __name__ == "__main__":
    # The ranks import what they are to run by its module's name.
    sys.path.insert(0, str(Path(__file__).parent))
    import bench_experts

    bench_experts.main(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
