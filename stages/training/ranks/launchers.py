"""Where the ranks of a group run: processes of this machine, or Ray actors.

They only start and end them; everything else goes over the group's connections.
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
from stages.training.ranks.rank_process import Post

if TYPE_CHECKING:
    from pipeline.context import Context
    from pipeline.stage import Workers


class Processes(Protocol):
    """Where ranks run."""

    host: str
    """The owner's address as the ranks see it."""

    def start(self, posts: Sequence[Post]) -> None:
        """Start one process a post."""

    def dead(self, index: int) -> str:
        """Why a rank's process is no more; empty while it lives."""

    def kill(self) -> None:
        """End all of them, at once."""


class LocalProcesses:
    """Ranks as child processes: for tests, and wherever there is no Ray."""

    host = "127.0.0.1"

    def __init__(self) -> None:
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, posts: Sequence[Post]) -> None:
        """Start the interpreter once a rank; the key goes in by a pipe, where nobody sees it."""
        for post in posts:
            paths = os.pathsep.join(path or str(os.curdir) for path in sys.path)
            child = subprocess.Popen(
                [sys.executable, "-m", "stages.training.ranks.rank_process"],
                stdin=subprocess.PIPE,
                env={**os.environ, **post.environment, "PYTHONPATH": paths},
            )
            self._children.append(child)
            assert child.stdin is not None
            with suppress(BrokenPipeError), child.stdin:
                child.stdin.write(json.dumps(asdict(post)).encode() + b"\n")

    def dead(self, index: int) -> str:
        """How the process ended."""
        code = self._children[index].poll()
        if code is None:
            return ""
        if code == -signal.SIGKILL:
            return "was killed (out of memory?)"
        return f"ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"

    def kill(self) -> None:
        """End the processes and take note of their end."""
        for child in self._children:
            child.kill()
        for child in self._children:
            child.wait()


class RayProcesses:
    """Ranks as Ray actors of one placement group."""

    def __init__(self, workers: Workers, name: str, patience: float) -> None:
        import ray

        self.host = str(ray.util.get_node_ip_address())
        self._workers = workers
        self._name = name
        self._patience = patience
        self._group: Any = None
        self._actors: list[Any] = []
        self._ends: list[Any] = []

    def start(self, posts: Sequence[Post]) -> None:
        """Place and start the actors.

        Raises:
            NoRoom: others used the cluster for long.
        """
        import ray
        from ray.util import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._remove_leftover()
        need = {"CPU": self._workers.cpus, "GPU": self._workers.gpus}
        bundle = {kind: amount for kind, amount in need.items() if amount}
        self._group = placement_group([bundle] * len(posts), strategy="PACK", name=self._name)
        if not self._group.wait(self._patience):
            raise ResourcesUnavailable(
                f"no room for {len(posts)} workers of {bundle} within {self._patience:.0f} s",
                remedy="wait for other runs to end, or ask for fewer workers",
            )
        place = PlacementGroupSchedulingStrategy(self._group)
        actor = ray.remote(RankActor).options(
            num_cpus=self._workers.cpus,
            num_gpus=self._workers.gpus,
            max_restarts=0,
            scheduling_strategy=place,
        )
        self._actors = [actor.remote() for _ in posts]
        self._ends = [
            a.serve.remote(asdict(post)) for a, post in zip(self._actors, posts, strict=True)
        ]

    def dead(self, index: int) -> str:
        """What Ray says of the actor's end."""
        import ray

        if not ray.wait([self._ends[index]], timeout=0)[0]:
            return ""
        try:
            ray.get(self._ends[index])
        except Exception as error:
            return f"died: {_reason(error)}"
        return "left"

    def kill(self) -> None:
        """End the actors and give back their room."""
        import ray

        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        if self._group is not None:
            ray.util.remove_placement_group(self._group)

    def _remove_leftover(self) -> None:
        """An attempt that was killed leaves its placement group, and would starve this one."""
        import ray

        with suppress(ValueError):
            ray.util.remove_placement_group(ray.util.get_placement_group(self._name))


class RankActor:
    """The body of a Ray actor: it is a rank until its owner is gone."""

    def serve(self, post: dict[str, Any]) -> None:
        """Be the rank."""
        from stages.training.ranks.rank_process import serve

        serve(Post(**post))


def _reason(error: BaseException) -> str:
    """What is telling in Ray's many lines."""
    text = " ".join(str(error).split())
    detail = re.search(r"Worker exit type: \w+ Worker exit detail: (.*?)(?: Some common|$)", text)
    return detail[1] if detail else text[:200] or type(error).__name__


def processes(backend: str | None, workers: Workers, ctx: Context, patience: float) -> Processes:
    """Ray's actors where Ray runs, else processes of this machine."""
    if backend is None:
        ray = sys.modules.get("ray")
        backend = "ray" if ray is not None and ray.is_initialized() else "local"
    if backend == "local":
        return LocalProcesses()
    return RayProcesses(workers, f"{ctx.run_id}/{ctx.stage}", patience)
