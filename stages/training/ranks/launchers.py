"""Start and end the ranks of a group: as processes of this machine, or as Ray actors.

Everything else goes over the group's own connections.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import ResourcesUnavailable
from stages.training.ranks.rank_process import RankSpec

if TYPE_CHECKING:
    from pipeline.context import Context
    from pipeline.stage import Workers


class RankLauncher(Protocol):
    """Launcher of the processes of a group."""

    host: str
    """The owner's address as the ranks see it."""

    def start(self, specs: Sequence[RankSpec]) -> None:
        """Start one process per spec."""

    def death_reason(self, index: int) -> str:
        """Return why a rank's process has ended; empty while it runs."""

    def kill(self) -> None:
        """End all processes at once."""


class LocalRankLauncher:
    """Ranks as child processes: for tests, and wherever Ray does not run."""

    host = "127.0.0.1"

    def __init__(self) -> None:
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, specs: Sequence[RankSpec]) -> None:
        """Start one interpreter per rank; the key is sent through a pipe, invisible to others."""
        paths = os.pathsep.join(path or str(os.curdir) for path in sys.path)
        for spec in specs:
            child = subprocess.Popen(
                [sys.executable, "-m", "stages.training.ranks.rank_process"],
                stdin=subprocess.PIPE,
                env={**os.environ, **spec.environment, "PYTHONPATH": paths},
            )
            self._children.append(child)
            assert child.stdin is not None
            with suppress(BrokenPipeError), child.stdin:
                child.stdin.write(json.dumps(asdict(spec)).encode() + b"\n")

    def death_reason(self, index: int) -> str:
        """Return the signal or exit code of a process that has ended."""
        code = self._children[index].poll()
        if code is None:
            return ""
        if code == -signal.SIGKILL:
            return "was killed (out of memory?)"
        return f"ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"

    def kill(self) -> None:
        """End the processes, and reap them."""
        for child in self._children:
            child.kill()
        for child in self._children:
            child.wait()


class RayRankLauncher:
    """Ranks as Ray actors of one placement group."""

    def __init__(self, workers: Workers, name: str, timeout: float) -> None:
        import ray

        self.host = str(ray.util.get_node_ip_address())
        self._workers = workers
        self._name = name
        self._timeout = timeout
        self._placement_group: Any = None
        self._actors: list[Any] = []
        self._runs: list[Any] = []

    def start(self, specs: Sequence[RankSpec]) -> None:
        """Place and start the actors.

        Raises:
            ResourcesUnavailable: the cluster had no free resources within the timeout.
        """
        import ray
        from ray.util import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        # An attempt that was killed leaves its placement group, which would starve this one.
        with suppress(ValueError):
            ray.util.remove_placement_group(ray.util.get_placement_group(self._name))
        resources = {"CPU": self._workers.cpus, "GPU": self._workers.gpus}
        bundle = {kind: amount for kind, amount in resources.items() if amount}
        group = placement_group([bundle] * len(specs), strategy="PACK", name=self._name)
        self._placement_group = group
        if not group.wait(self._timeout):
            raise ResourcesUnavailable(
                f"no room for {len(specs)} workers of {bundle} within {self._timeout:.0f} s",
                remedy="wait for other runs to end, or reduce workers.num",
            )
        actor = ray.remote(RankActor).options(
            num_cpus=self._workers.cpus,
            num_gpus=self._workers.gpus,
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group),
        )
        self._actors = [actor.remote() for _ in specs]
        pairs = zip(self._actors, specs, strict=True)
        self._runs = [actor.run.remote(asdict(spec)) for actor, spec in pairs]

    def death_reason(self, index: int) -> str:
        """Return Ray's reason for the end of an actor."""
        import ray

        if not ray.wait([self._runs[index]], timeout=0)[0]:
            return ""
        try:
            ray.get(self._runs[index])
        except Exception as error:
            return f"died: {_short_reason(error)}"
        return "left"

    def kill(self) -> None:
        """End the actors, and release their resources."""
        import ray

        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        if self._placement_group is not None:
            ray.util.remove_placement_group(self._placement_group)


class RankActor:
    """A Ray actor that is a rank until its owner disconnects."""

    def run(self, spec: dict[str, Any]) -> None:
        """Run the rank until its owner disconnects."""
        from stages.training.ranks.rank_process import run_rank

        run_rank(RankSpec(**spec))


def _short_reason(error: BaseException) -> str:
    """Return the informative part of Ray's message."""
    text = " ".join(str(error).split())
    detail = re.search(r"Worker exit type: \w+ Worker exit detail: (.*?)(?: Some common|$)", text)
    return detail[1] if detail else text[:200] or type(error).__name__


def make_rank_launcher(
    backend: str | None, workers: Workers, ctx: Context, timeout: float
) -> RankLauncher:
    """Return a launcher of Ray actors where Ray runs, else of processes of this machine."""
    if backend is None:
        ray = sys.modules.get("ray")
        backend = "ray" if ray is not None and ray.is_initialized() else "local"
    if backend == "local":
        return LocalRankLauncher()
    return RayRankLauncher(workers, f"{ctx.run_id}/{ctx.stage}", timeout)
