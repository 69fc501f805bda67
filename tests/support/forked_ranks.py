"""Ranks forked from a process that has imported everything already.

A group then starts in a moment instead of after many seconds of imports, so that tests can afford
to kill some. They are processes like any others, and die like them.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from stages.training.ranks.launchers import LocalRankLauncher
from stages.training.ranks.rank_process import RankSpec, run_rank


class Forked(LocalRankLauncher):
    """Ranks of this machine: forked rather than started."""

    def start(self, specs: Sequence[RankSpec]) -> None:
        forks = multiprocessing.get_context("forkserver")
        forks.set_forkserver_preload(["preloaded_imports"])
        for spec in specs:
            process = forks.Process(target=run_rank, args=(spec,), daemon=True)
            process.start()
            child: Any = Child(process)
            self._children.append(child)


class Child:
    """A forked process as `subprocess` has them."""

    def __init__(self, process: BaseProcess) -> None:
        self.process = process
        self.kill = process.kill
        self.wait = process.join

    def poll(self) -> int | None:
        return self.process.exitcode
