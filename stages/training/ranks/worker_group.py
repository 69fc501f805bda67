"""A group of ranks: started together, watched, and ended together.

    with WorkerGroup(params.workers, ctx, params.train.watchdog) as group:
        results = group.run(fit, objective, params.train, seed=params.seed, out=out)

Where Ray runs, the ranks are actors of one placement group; else they are processes of this
machine. Ray only places them: everything else (orders, results, pulses) goes over one
authenticated connection a rank, so that both kinds behave alike. Whatever befalls one rank ends
all: its class of error is raised here, and the runner starts the attempt again.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import connection as mp
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.errors import HeadwaterError, Interrupted, StageStalled, UserError, WorkerDied
from stages.training.ranks.handshake import admit
from stages.training.ranks.launchers import processes
from stages.training.ranks.rank_process import Post, environment
from stages.training.ranks.watchdog import Watchdog
from stages.training.training_params import WatchdogSection

if TYPE_CHECKING:
    from pipeline.context import Context
    from pipeline.stage import Workers

GRACE, GRACE_KNOWN = 3.0, 0.5
"""Seconds that the other ranks get to say what they know of a failure: before its cause is known,
and after."""
TICK = 0.2


class WorkerGroup:
    """Ranks that run one function after another."""

    def __init__(
        self,
        workers: Workers,
        ctx: Context,
        limits: WatchdogSection | None = None,
        *,
        backend: str | None = None,
    ) -> None:
        self.workers = workers
        self.world = workers.num
        self.limits = limits or WatchdogSection()
        """When a silent rank counts as stuck; may be set anew before a call that is special."""
        self._ctx = ctx
        self._processes = processes(backend, workers, ctx, self.limits.startup_timeout)
        self._links: dict[int, Connection] = {}
        self._pids: dict[int, tuple[int, str]] = {}
        self._replies: dict[int, Any] = {}
        self._failures: dict[int, HeadwaterError] = {}
        self._orders = 0
        self._watchdog = Watchdog((), self.limits)

    def __enter__(self) -> WorkerGroup:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> list[Any]:
        """Call `function(rank, *arguments, **named)` on every rank; the results by rank.

        Raises:
            UserError, Interrupted, Failure: what a rank raised.
            WorkerDied: a rank's process ended.
            Stuck: a rank made no progress; the stacks of all are in the attempt's folder.
        """
        self._order("call", function, arguments, named)
        return self._collect()

    def close(self) -> None:
        """End the ranks. Nothing of them is left afterwards."""
        for link in self._links.values():
            with suppress(OSError):
                link.send("leave")
        self._processes.kill()
        for pid, host in self._pids.values():
            if host == socket.gethostname():
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        for link in self._links.values():
            link.close()
        self._links.clear()
        self._pids.clear()

    def _start(self) -> None:
        key = secrets.token_hex(32)
        gpu = self.workers.gpus > 0
        with socket.create_server((self._processes.host, 0), backlog=self.world) as server:
            facts = environment(self.workers.cpus, gpu, self._ctx.cache)
            self._processes.start(
                [
                    Post(
                        self._processes.host,
                        server.getsockname()[1],
                        key,
                        index,
                        self.world,
                        gpu,
                        str(self._ctx.attempt_dir),
                        facts,
                        tuple(str(Path(path).absolute()) for path in sys.path),
                    )
                    for index in range(self.world)
                ]
            )
            patience = self.limits.startup_timeout
            found = admit(server, bytes.fromhex(key), self.world, patience, self._check_alive)
        self._links = {index: admitted.link for index, admitted in found.items()}
        self._pids = {index: (admitted.pid, admitted.host) for index, admitted in found.items()}
        self._meet()

    def _meet(self) -> None:
        """Imports side by side, then the process group."""
        self._order("prepare")
        self._collect()
        here = {host for _, host in self._pids.values()} == {socket.gethostname()}
        address = "127.0.0.1" if here else self._links_host()
        self._order("host", address, ranks=[0])
        port = self._collect([0])[0]
        self._order("join", address, port, self._ctx)
        self._collect()

    def _links_host(self) -> str:
        """Rank 0's address, as its connection to us shows it."""
        with socket.socket(fileno=os.dup(self._links[0].fileno())) as end:
            return str(end.getpeername()[0])

    def _order(self, *order: Any, ranks: Sequence[int] | None = None) -> None:
        """Send an order; its number marks the answers to it."""
        self._orders += 1
        for index in range(self.world) if ranks is None else ranks:
            try:
                if index not in self._links:
                    raise OSError
                self._links[index].send(self._orders)
                self._links[index].send(order)
            except OSError as error:
                raise WorkerDied(self._death(index)) from error

    def _collect(self, ranks: Sequence[int] | None = None) -> list[Any]:
        """Wait for an answer of each rank, watching over those that still owe it."""
        waited = list(range(self.world) if ranks is None else ranks)
        self._replies, self._failures = {}, {}
        self._watchdog = Watchdog(waited, self.limits)
        failed = float("inf")
        while len(self._replies) + len(self._failures) < len(waited):
            self._listen(TICK)
            if self._failures:
                failed = min(failed, time.monotonic())
                if time.monotonic() - failed > (GRACE_KNOWN if self._told() else GRACE):
                    break
            elif verdict := self._watchdog.verdict():
                self._dump()
                raise StageStalled(
                    verdict,
                    where=self._ctx.stage,
                    remedy=f"see the stacks in {self._ctx.attempt_dir}",
                )
        if self._failures:
            raise self._worst()
        return [self._replies[index] for index in waited]

    def _listen(self, seconds: float) -> None:
        """Take in what the ranks say, and notice those that are gone."""
        ready = mp.wait(self._links.values(), seconds)
        for index, link in [pair for pair in self._links.items() if pair[1] in ready]:
            rest: list[Any]
            try:
                verb, *rest = link.recv()
            except (EOFError, OSError):
                self._lose(index)
                continue
            if verb == "beat":
                self._watchdog.show(index, *rest)
            elif rest[0] == self._orders:  # else an answer that came too late
                (self._replies if verb == "done" else self._failures)[index] = rest[1]
                self._watchdog.release(index)

    def _lose(self, index: int) -> None:
        self._failures[index] = WorkerDied(self._death(index), where=self._ctx.stage)
        self._links.pop(index).close()

    def _death(self, index: int) -> str:
        """Why a rank's process is gone; its end may be known a moment after its connection's."""
        for _ in range(10):
            if why := self._processes.dead(index):
                return f"rank {index} {why}"
            time.sleep(TICK / 2)
        return f"rank {index} closed its connection"

    def _check_alive(self) -> None:
        for index in range(self.world):
            if why := self._processes.dead(index):
                raise WorkerDied(
                    f"rank {index} {why} while starting",
                    where=self._ctx.stage,
                    remedy=f"see {self._ctx.attempt_dir / f'rank-{index}.log'}",
                )

    def _told(self) -> bool:
        """Whether the cause is known: a death or an error of ours, not a peer's lost connection."""
        return any(_weight(error) < 3 for error in self._failures.values())

    def _worst(self) -> HeadwaterError:
        """Of what the ranks raised, the cause."""
        return min(self._failures.values(), key=_weight)

    def _dump(self) -> None:
        """Have every rank write its stacks: by a signal where it is one of this machine, for it
        works when the interpreter does not; else by an order."""
        for index, (pid, host) in self._pids.items():
            with suppress(OSError):
                if host == socket.gethostname():
                    os.kill(pid, signal.SIGUSR1)
                else:
                    self._links[index].send("dump")
        time.sleep(1.0)


def _weight(error: HeadwaterError) -> int:
    """Causes before consequences: when a rank dies, its peers' collectives fail too."""
    if isinstance(error, UserError):
        return 0
    if isinstance(error, WorkerDied):
        return 1
    if isinstance(error, Interrupted):
        return 4
    lost = "connection" in error.message.lower() or "DistBackendError" in error.message
    return 3 if lost else 2
