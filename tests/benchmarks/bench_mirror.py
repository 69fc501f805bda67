"""What the MLflow mirror costs a training step: with MLflow up, refused, silent, answering 500.

    python tests/benchmarks/bench_mirror.py [PAIRS]

The quickstart's GPT (4 layers, width 128, context 128, global batch 32) trains on two ranks, which
keep both cores busy. The mirror follows a run that gains points all the time; every other group of
steps it is stopped by SIGSTOP, so that steps with and without it alternate within the same minute.
The first seconds of the mirror, in which it imports MLflow, are measured too: all steps count.
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


@contextmanager
def up() -> Iterator[tuple[None, None]]:
    """The store's own database."""
    yield None, None


def contest(group: Any, outage: Any, pairs: int, folder: Path) -> tuple[float, float]:
    """Median seconds of a step with the mirror at work, and with the mirror stopped."""
    import bench_training
    import sample_run

    from launch.tracking.mirror import Mirror

    run = sample_run.make(folder / "store", names=("gpt",), finish=False)
    spent: dict[bool, list[float]] = {True: [], False: []}
    with outage() as (port, _):
        mirror = Mirror(run.store, run, f"http://127.0.0.1:{port}" if port else None)
        mirror.start()
        child = mirror._child
        assert child is not None
        try:
            for number in range(2 * pairs * GROUP):
                follows = number // GROUP % 2 == 0
                child.send_signal(signal.SIGCONT if follows else signal.SIGSTOP)
                begun = time.perf_counter()
                group.run(bench_training.one_step, number)
                spent[follows].append(time.perf_counter() - begun)
                run.append("note", message=f"step {number}")
        finally:
            child.send_signal(signal.SIGCONT)
            mirror.stop(1.0)
    return statistics.median(spent[True]), statistics.median(spent[False])


def main(pairs: int) -> None:
    from outages import broken, refused, silent

    from pipeline.context import Context
    from pipeline.stage import Workers
    from stages.training.group import WorkerGroup

    with tempfile.TemporaryDirectory() as place:
        ctx = Context.local(Path(place))
        with WorkerGroup(Workers(num=2), ctx, backend="local") as group:
            import bench_training

            for number in range(3):
                group.run(bench_training.one_step, number)
            for outage in (up, refused, silent, broken):
                folder = Path(place) / outage.__name__
                with_it, without = contest(group, outage, pairs, folder)
                print(
                    f"{outage.__name__:8s} {with_it * 1e3:6.1f} ms a step with the mirror,"
                    f" {without * 1e3:6.1f} ms without ({with_it / without - 1:+.1%})",
                    flush=True,
                )


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent)]
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
