"""CPUs and GPUs: what a cluster has, whether stages can be placed on it, what is reserved."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.errors import Problem, SpecError
from pipeline.spec.pipeline_spec import Node
from pipeline.stage import Workers

POLL_INTERVAL = 0.1  # seconds between two checks of a waiting thread


@dataclass(frozen=True)
class Resources:
    """CPU cores and GPUs of a cluster, of one of its nodes, or of a stage."""

    cpus: float
    gpus: float = 0.0

    @classmethod
    def required_by(cls, workers: Workers) -> Resources:
        """Return the sum over the processes of a stage."""
        return cls(workers.num * workers.cpus, workers.num * workers.gpus)

    def max_processes(self, workers: Workers) -> int:
        """Return how many processes of a stage fit on a node with these resources."""
        gpus = self.gpus / workers.gpus if workers.gpus else math.inf
        return int(min(self.cpus / workers.cpus, gpus) + 1e-9)

    def fits(self, other: Resources) -> bool:
        """Return whether these resources contain the others."""
        return other.cpus <= self.cpus + 1e-9 and other.gpus <= self.gpus + 1e-9

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.cpus + other.cpus, self.gpus + other.gpus)

    def __sub__(self, other: Resources) -> Resources:
        return Resources(self.cpus - other.cpus, self.gpus - other.gpus)

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


def check_placement(nodes: Iterable[Node], capacity: Sequence[Resources]) -> None:
    """Check that all processes of each stage fit the cluster at once, each on one of its nodes.

    Args:
        nodes: the stages.
        capacity: the resources of each node of the cluster.

    Raises:
        SpecError: all stages that would wait forever.
    """
    problems = []
    for node in nodes:
        workers, key = node.params.workers, f"{node.name}.workers"
        room = sum(machine.max_processes(workers) for machine in capacity)
        most = max((machine.gpus for machine in capacity), default=0.0)
        if workers.gpus > most:
            message = f"requests {workers.gpus:g} GPUs per process; the largest node has {most:g}"
            remedy = f"set {key}.gpus: {most:g}, or use a cluster with more GPUs"
            problems.append(Problem(f"{key}.gpus", message, remedy, node.where))
        elif room < workers.num:
            each = Resources(workers.cpus, workers.gpus)
            message = f"requests {workers.num} times {each}, each on one node; {room} fit"
            remedy = f"lower {key}.num or the resources per process, or use a larger cluster"
            problems.append(Problem(key, message, remedy, node.where))
    if problems:
        raise SpecError(problems)


class ResourcePool:
    """The resources of the cluster that no stage of this run has reserved."""

    def __init__(self, total: Resources) -> None:
        self._free = total
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, need: Resources, give_up: Callable[[], bool]) -> Iterator[bool]:
        """Reserve resources inside the block; yield False if `give_up()` is true before."""
        with self._changed:
            while not (lost := give_up()) and not self._free.fits(need):
                self._changed.wait(POLL_INTERVAL)
            self._free -= need if not lost else Resources(0)
        try:
            yield not lost
        finally:
            with self._changed:
                self._free += need if not lost else Resources(0)
                self._changed.notify_all()
