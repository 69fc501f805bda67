"""What the MLflow mirror costs a training step: with MLflow up, refused, silent, answering 500.

    python tests/benchmarks/bench_mirror.py [PAIRS]

The quickstart's GPT (4 layers, width 128, context 128, global batch 32) trains on two ranks, which
keep both cores busy. The mirror follows a run that gains points all the time; every other group of
steps it is stopped by SIGSTOP, so that steps with and without it alternate within the same minute;
the median of the pairs' ratios is told, and the mirror's CPU time a step. The first seconds, in
which it imports MLflow (once a run, on as much of the cores as training leaves), are not counted.
"""

from __future__ import annotations

import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GROUP = 3  # steps in a row with, then without the mirror
IMPORTING = 30  # steps after which the mirror has its libraries


@contextmanager
def up() -> Iterator[tuple[None, None]]:
    """The store's own database."""
    yield None, None


def contest(group: Any, outage: Any, pairs: int, folder: Path) -> tuple[float, float, float]:
    """Median seconds of a step with the mirror stopped; the median ratio of neighbouring groups of
    steps with it and without; CPU seconds that it takes in a step that it follows."""
    import bench_training
    import psutil
    import sample_run

    from launch.tracking.mirror import Mirror

    run = sample_run.make(folder / "store", names=("gpt",), finish=False)
    spent: list[float] = []
    with outage() as (port, _):
        mirror = Mirror(run.store, run, f"http://127.0.0.1:{port}" if port else None)
        mirror.start()
        child = mirror._child
        assert child is not None
        process = psutil.Process(child.pid)
        used = 0.0
        try:
            for number in range(-IMPORTING, 2 * pairs * GROUP):
                follows = number < 0 or number // GROUP % 2 == 0
                if number == 0:
                    used = sum(process.cpu_times()[:2])
                child.send_signal(signal.SIGCONT if follows else signal.SIGSTOP)
                begun = time.perf_counter()
                group.run(bench_training.one_step, IMPORTING + number)
                spent.append(time.perf_counter() - begun)
                run.append("note", message=f"step {number}")
            used = sum(process.cpu_times()[:2]) - used
        finally:
            child.send_signal(signal.SIGCONT)
            mirror.stop(1.0)
    groups = [sum(spent[at : at + GROUP]) for at in range(IMPORTING, len(spent), GROUP)]
    ratios = [with_it / without for with_it, without in zip(groups[::2], groups[1::2], strict=True)]
    without = statistics.median(groups[1::2]) / GROUP
    return without, statistics.median(ratios), used / (pairs * GROUP)


def main(pairs: int) -> None:
    from mlflow_outages import broken, refused, silent

    from pipeline.context import Context
    from pipeline.stage import Workers
    from stages.training.ranks.worker_group import WorkerGroup

    with tempfile.TemporaryDirectory() as place:
        ctx = Context.local(Path(place))
        with WorkerGroup(Workers(num=2), ctx, backend="local") as group:
            import bench_training

            for number in range(3):
                group.run(bench_training.one_step, number)
            for outage in (up, refused, silent, broken):
                folder = Path(place) / outage.__name__
                without, ratio, used = contest(group, outage, pairs, folder)
                print(
                    f"{outage.__name__:8s} {without * 1e3:6.1f} ms a step without the mirror,"
                    f" {ratio - 1:+.1%} with it; it takes {used * 1e3:.1f} ms of CPU a step",
                    flush=True,
                )


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests" / "support"), str(Path(__file__).parent)]
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
