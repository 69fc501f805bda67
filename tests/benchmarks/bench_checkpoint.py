"""What a checkpoint costs the steps around it: two ranks, ZeRO-1, 13.9 M parameters (167 MB).

    python tests/benchmarks/bench_checkpoint.py [SAVES]

The copy to host memory, and the step after it, during which the ranks hash and write in the
background; each over a plain step. Medians over the saves. The ranks have a core each, so whoever
hashes takes from whoever trains: on a machine with cores to spare, less is seen of it.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from pipeline.context import Context
from pipeline.stage import Workers
from stages.training.engine import Engine
from stages.training.ranks.rank import Rank
from stages.training.ranks.worker_group import WorkerGroup
from stages.training.trainer import Trainer
from stages.training.training_params import TrainSection

EVERY = 6


def saving(rank: Rank, saves: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of steps, by where they stand to a save."""
    from bench_training import LARGE, Language

    made = {
        "steps": 10**6,
        "global_batch_size": LARGE.batch,
        "checkpoint_interval": EVERY,
        "warmup_steps": 0,
    }
    settings = TrainSection.model_validate(made)
    torch.manual_seed(0)
    objective = Language(LARGE.config)
    trainables = objective.setup(rank, settings, 0)
    engines = {name: Engine(name, t, settings, rank) for name, t in trainables.items()}
    fit = Trainer(rank, objective, settings, 0, "saving", engines, folder)
    found: dict[str, list[float]] = {"plain": [], "copy": [], "after": []}
    for number in range(1, EVERY * (saves + 2)):
        rank.barrier()
        start = time.perf_counter()
        fit._step()
        step = time.perf_counter()
        fit._after_step()
        rank.barrier()
        if number < 2 * EVERY:  # buffers, pages, caches
            continue
        if number % EVERY == 0:
            found["copy"].append(time.perf_counter() - step)
        elif number % EVERY == 1:
            found["after"].append(step - start)
        elif number % EVERY > 2:
            found["plain"].append(step - start)
    return found


def main(saves: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ctx = Context.local(Path(folder))
        with WorkerGroup(Workers(num=2), ctx, backend="local") as group:
            found = group.run(saving, saves, Path(folder) / "checkpoints")[0]
    plain = statistics.median(found["plain"])
    print(f"a plain step            {plain:6.3f} s")
    for name, what in (("copy", "the copy of a save"), ("after", "the step after a save")):
        seconds = statistics.median(found[name])
        print(f"{what:23s} {seconds:6.3f} s ({seconds / plain:4.2f}x)")


if __name__ == "__main__":
    # The ranks import what they are to run by its module's name.
    sys.path.insert(0, str(Path(__file__).parent))
    import bench_checkpoint

    bench_checkpoint.main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
