"""A group of ranks: started together, watched, and ended together.

    with WorkerGroup(params.workers, ctx, params.train.watchdog) as group:
        results = group.run(fit, objective, params.train, seed=params.seed, out=out)

Where Ray runs, the ranks are actors of one placement group; otherwise they are processes of this
machine. Ray only places them: commands, replies and progress reports go over one authenticated
connection per rank. Whatever happens to one rank ends all of them: its class of error is raised
here, and the runner starts the attempt again.

Why not method calls of Ray actors? First, without Ray (tests, laptops) the same code must start,
watch, time out and end the ranks; with a channel of its own there is one implementation, and local
mode behaves as the cluster does. Second, a rank that hangs in a collective, or in a C call that
holds the interpreter's lock, answers no actor call. Here a missing report is itself the signal: the
watchdog sees which rank reports nothing, or has done least, dumps the stacks of all ranks within
seconds and ends them, whereas Ray reports only that an actor has died.
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
from stages.training.ranks.handshake import accept_ranks
from stages.training.ranks.launchers import make_rank_launcher
from stages.training.ranks.rank_process import LOOPBACK, RankSpec, rank_environment
from stages.training.ranks.watchdog import Watchdog, WatchdogSection

if TYPE_CHECKING:
    from pipeline.context import Context
    from pipeline.stage import Workers

FAILURE_GRACE, KNOWN_FAILURE_GRACE = 3.0, 0.5
"""Seconds in which the other ranks may report a failure after the first one: before its root cause
is known, and after."""
POLL_INTERVAL = 0.2


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
        """Timeouts of the watchdog; may be replaced before a call that needs others."""
        self._ctx = ctx
        self._launcher = make_rank_launcher(backend, workers, ctx, self.limits.startup_timeout)
        self._connections: dict[int, Connection] = {}
        self._pids: dict[int, tuple[int, str]] = {}
        self._replies: dict[int, Any] = {}
        self._failures: dict[int, HeadwaterError] = {}
        self._command_number = 0
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
        """Call `function(rank, *arguments, **named)` on every rank, and return the results by rank.

        Raises:
            UserError, Interrupted, Failure: raised by a rank.
            WorkerDied: a rank's process ended.
            StageStalled: a rank made no progress; the stacks of all are in the attempt's folder.
        """
        self._send_command("call", function, arguments, named)
        return self._gather_replies()

    def close(self) -> None:
        """End the ranks, with all their processes."""
        for connection in self._connections.values():
            with suppress(OSError):
                connection.send("leave")
        self._launcher.kill()
        for pid, host in self._pids.values():
            if host == socket.gethostname():
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        self._pids.clear()

    def _start(self) -> None:
        key = secrets.token_hex(32)
        gpu = self.workers.gpus > 0
        with socket.create_server((self._launcher.host, 0), backlog=self.world) as server:
            environment = rank_environment(self.workers.cpus, gpu, self._ctx.cache)
            self._launcher.start(
                [
                    RankSpec(
                        self._launcher.host,
                        server.getsockname()[1],
                        key,
                        index,
                        self.world,
                        gpu,
                        str(self._ctx.attempt_dir),
                        environment,
                        tuple(str(Path(path).absolute()) for path in sys.path),
                        tuple(sorted(self._ctx.secrets)),
                    )
                    for index in range(self.world)
                ]
            )
            timeout = self.limits.startup_timeout
            ranks = accept_ranks(server, bytes.fromhex(key), self.world, timeout, self._check_alive)
        self._connections = {index: rank.connection for index, rank in ranks.items()}
        self._pids = {index: (rank.pid, rank.host) for index, rank in ranks.items()}
        self._init_process_group()

    def _init_process_group(self) -> None:
        """Import the libraries on all ranks at the same time, then join them in a process group."""
        self._send_command("prepare")
        self._gather_replies()
        address = LOOPBACK
        if {host for _, host in self._pids.values()} != {socket.gethostname()}:
            # Rank 0's address, as its connection shows it.
            with socket.socket(fileno=os.dup(self._connections[0].fileno())) as end:
                address = str(end.getpeername()[0])
        self._send_command("host", address, ranks=[0])
        port = self._gather_replies([0])[0]
        self._send_command("join", address, port, self._ctx)
        self._gather_replies()

    def _send_command(self, *command: Any, ranks: Sequence[int] | None = None) -> None:
        """Send a command; its number marks the replies to it."""
        self._command_number += 1
        for index in range(self.world) if ranks is None else ranks:
            try:
                if index not in self._connections:
                    raise OSError
                self._connections[index].send(self._command_number)
                self._connections[index].send(command)
            except OSError as error:
                raise WorkerDied(self._death(index)) from error

    def _gather_replies(self, ranks: Sequence[int] | None = None) -> list[Any]:
        """Return the reply of each rank, and watch the ranks whose reply is pending."""
        pending = list(range(self.world) if ranks is None else ranks)
        self._replies, self._failures = {}, {}
        self._watchdog = Watchdog(pending, self.limits)
        failed_at = float("inf")
        while len(self._replies) + len(self._failures) < len(pending):
            self._receive(POLL_INTERVAL)
            if self._failures:
                failed_at = min(failed_at, time.monotonic())
                grace = KNOWN_FAILURE_GRACE if self._root_cause_known() else FAILURE_GRACE
                if time.monotonic() - failed_at > grace:
                    break
            elif stall := self._watchdog.stall():
                self._dump_stacks()
                raise StageStalled(
                    stall,
                    where=self._ctx.stage,
                    remedy=f"see the stacks in {self._ctx.attempt_dir}",
                )
        if self._failures:
            raise min(self._failures.values(), key=_causal_order)
        return [self._replies[index] for index in pending]

    def _receive(self, seconds: float) -> None:
        """Receive reports and replies, and note the ranks that are gone."""
        ready = mp.wait(self._connections.values(), seconds)
        for index, connection in [p for p in self._connections.items() if p[1] in ready]:
            rest: list[Any]
            try:
                kind, *rest = connection.recv()
            except (EOFError, OSError):
                self._failures[index] = WorkerDied(self._death(index), where=self._ctx.stage)
                self._connections.pop(index).close()
                continue
            if kind == "progress":
                self._watchdog.report(index, *rest)
            elif rest[0] == self._command_number:  # else a reply to an earlier command
                (self._replies if kind == "done" else self._failures)[index] = rest[1]
                self._watchdog.release(index)

    def _death(self, index: int) -> str:
        """Return why a rank's process is gone; the reason may be known a moment after its
        connection has closed."""
        for _ in range(10):
            if reason := self._launcher.death_reason(index):
                return f"rank {index} {reason}"
            time.sleep(POLL_INTERVAL / 2)
        return f"rank {index} closed its connection"

    def _check_alive(self) -> None:
        for index in range(self.world):
            if reason := self._launcher.death_reason(index):
                raise WorkerDied(
                    f"rank {index} {reason} while starting",
                    where=self._ctx.stage,
                    remedy=f"see {self._ctx.attempt_dir / f'rank-{index}.log'}",
                )

    def _root_cause_known(self) -> bool:
        """Return whether a failure is a cause, not the lost connection of a peer."""
        return any(_causal_order(error) < 3 for error in self._failures.values())

    def _dump_stacks(self) -> None:
        """Make every rank write its stacks: by a signal on this machine, because a signal works
        when the interpreter is blocked, and by a message elsewhere."""
        for index, (pid, host) in self._pids.items():
            with suppress(OSError):
                if host == socket.gethostname():
                    os.kill(pid, signal.SIGUSR1)
                else:
                    self._connections[index].send("dump")
        time.sleep(1.0)


def _causal_order(error: HeadwaterError) -> int:
    """Return a sort key with causes before consequences: when a rank dies, the collectives of its
    peers fail too."""
    if isinstance(error, UserError):
        return 0
    if isinstance(error, WorkerDied):
        return 1
    if isinstance(error, Interrupted):
        return 4
    lost = "connection" in error.message.lower() or "DistBackendError" in error.message
    return 3 if lost else 2
