"""The process of one rank: `python -m stages.training.ranks.rank_process`, or the same in a Ray
actor.

It connects to its owner, imports what training needs, joins the process group, and then runs
commands: `call` runs a function with its rank. One thread sends its progress counters; another one
receives, so that the process ends with its owner whatever its main thread is blocked in. Nothing of
torch is imported before the environment is set.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.errors import Failure, HeadwaterError
from stages.distributed.output_capture import capture_output

if TYPE_CHECKING:
    from stages.training.ranks.rank import RankProgress

LOOPBACK = "127.0.0.1"
"""Address at which ranks meet that are all on one machine."""
REPORT_INTERVAL = 0.5
"""Seconds between two reports of the progress counters."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class RankSpec:
    """The address of a rank's owner, and the rank's own place and environment."""

    host: str
    port: int
    key: str
    """Shared secret in hexadecimal; both sides prove it before anything is unpickled."""
    index: int
    world: int
    gpu: bool
    log_dir: str
    environment: Mapping[str, str]
    import_paths: tuple[str, ...] = ()
    """The owner's `sys.path`: the functions that it sends must be importable here too."""
    secrets: tuple[str, ...] = ()
    """Names of environment variables whose values do not reach the log."""


def rank_environment(cpus: float, gpu: bool, cache: Path) -> dict[str, str]:
    """Return the environment variables of a rank's process.

    DeepSpeed builds extensions into a folder that a killed build leaves locked forever, hence a
    private one; and on a CPU it would build one at once (see `deepspeed_compat`).
    """
    threads = str(max(1, int(cpus)))
    device = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"} if gpu else {"DS_ACCELERATOR": "cpu"}
    return {
        **device,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_EXTENSIONS_DIR": str(cache / "torch-extensions" / f"py{sys.version_info.minor}"),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TRANSFORMERS_OFFLINE": "1",
    }


def run_rank(spec: RankSpec, connection: Connection | None = None) -> None:
    """Run the owner's commands until it closes the connection, which ends the process."""
    log = Path(spec.log_dir) / f"rank-{spec.index}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    with capture_output(log, spec.secrets):
        _run_commands(spec, connection)


def _run_commands(spec: RankSpec, connection: Connection | None) -> None:
    stacks = _prepare_stack_dumps(Path(spec.log_dir) / f"stacks-{spec.index}.txt")
    os.environ.update(spec.environment)
    sys.path += [path for path in spec.import_paths if path not in sys.path]
    owner = OwnerConnection(connection or connect(spec), spec)
    from stages.training.ranks.rank import RankProgress

    progress = RankProgress()
    threading.Thread(target=owner.receive, args=(stacks,), daemon=True).start()
    threading.Thread(target=owner.report, args=(progress,), daemon=True).start()
    server = RankServer(spec, progress)
    while True:
        number, command, *arguments = owner.commands.get()
        try:
            owner.send("done", number, getattr(server, command)(*arguments))
        except BaseException as error:
            traceback.print_exc()
            owner.send("failed", number, portable_error(error, spec))


class RankServer:
    """The commands of a rank, one method per command."""

    def __init__(self, spec: RankSpec, progress: RankProgress) -> None:
        self._spec = spec
        self._progress = progress
        self._store: Any = None
        self._rank: Any = None

    def prepare(self) -> None:
        """Import the libraries that take seconds; all ranks do so at the same time."""
        from stages.training.deepspeed_compat import import_deepspeed

        import_deepspeed()
        import torch

        torch.set_num_threads(int(self._spec.environment["OMP_NUM_THREADS"]))

    def host(self, address: str) -> int:
        """Open the store at which the ranks meet, and return its port; rank 0 only.

        Where all ranks are on this machine, the store listens on loopback: without a socket of its
        own it would listen on every interface.
        """
        from torch._C._distributed_c10d import TCPStore

        from stages.training.ranks.rank import COLLECTIVE_TIMEOUT

        options: dict[str, Any] = {"wait_for_workers": False}
        port = 0
        if address == LOOPBACK:
            listener = socket.create_server((address, 0))
            port = listener.getsockname()[1]
            options["master_listen_fd"] = listener.detach()  # the store closes it
        world = self._spec.world
        self._store = TCPStore(address, port, world, True, COLLECTIVE_TIMEOUT, **options)
        return int(self._store.port)

    def join(self, address: str, port: int, ctx: Any) -> None:
        """Join the process group. Only rank 0 reports to the context."""
        from torch._C._distributed_c10d import TCPStore

        from stages.training.ranks.rank import COLLECTIVE_TIMEOUT, Rank

        index, world = self._spec.index, self._spec.world
        if address == LOOPBACK and sys.platform == "linux":
            # All ranks are on this machine: they connect whatever its host name resolves to, and
            # no other machine can connect.
            os.environ.update(GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="lo")
        if self._store is None:
            self._store = TCPStore(address, port, world, False, COLLECTIVE_TIMEOUT)
        self._rank = Rank.join(
            index,
            world,
            self._store,
            gpu=self._spec.gpu,
            ctx=None if index else ctx,
            progress=self._progress,
        )

    def call(self, function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Return `function(rank, *arguments, **named)`."""
        self._progress.reset()
        return function(self._rank, *arguments, **named)


def portable_error(error: BaseException, spec: RankSpec) -> HeadwaterError:
    """Return the error that the owner raises: one of this package as it is, any other as a Failure
    that names the rank's log."""
    if isinstance(error, HeadwaterError):
        return error
    where = f"rank {spec.index}"
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        remedy = "lower train.micro_batch_size, or raise train.zero_stage or the number of workers"
        return Failure("out of memory", where=where, remedy=remedy)
    line = (str(error).strip() or "no message").splitlines()[0]
    log = str(Path(spec.log_dir) / f"rank-{spec.index}.log")
    return Failure(f"{type(error).__name__}: {line}", where=where, remedy=f"see {log}")


def die_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class OwnerConnection:
    """The connection to the owner, used by three threads."""

    def __init__(self, connection: Connection, spec: RankSpec) -> None:
        self._connection = connection
        self._spec = spec
        self._lock = threading.Lock()
        self.commands: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        """Commands in their order: number, name, arguments."""

    def send(self, kind: str, *rest: Any) -> None:
        """Send a message; if the owner is gone, end this process."""
        try:
            with self._lock:
                self._connection.send((kind, *rest))
        except OSError:
            os._exit(1)

    def receive(self, stacks: IO[str]) -> None:
        """Receive commands until the owner is gone, then end the process, whatever it is doing."""
        with suppress(EOFError, OSError):
            while (message := self._connection.recv()) != "leave":
                if message == "dump":
                    faulthandler.dump_traceback(stacks, all_threads=True)
                else:
                    self._receive_command(message)
        os._exit(0)

    def _receive_command(self, number: int) -> None:
        """Receive the command of that number; it may name what cannot be imported here."""
        try:
            self.commands.put((number, *self._connection.recv()))
        except (EOFError, OSError):
            raise
        except Exception as error:
            traceback.print_exc()
            self.send("failed", number, portable_error(error, self._spec))

    def report(self, progress: RankProgress) -> None:
        """Send the progress counters twice per second."""
        pause = threading.Event()
        while not pause.wait(REPORT_INTERVAL):
            self.send("progress", progress.count, progress.waits, progress.step_seconds)


def connect(spec: RankSpec) -> Connection:
    """Connect to the owner; each side proves the key to the other."""
    connection: Connection = Client((spec.host, spec.port), authkey=bytes.fromhex(spec.key))
    connection.send((spec.index, os.getpid(), socket.gethostname()))
    return connection


def _prepare_stack_dumps(path: Path) -> IO[str]:
    """Let crashes and SIGUSR1 dump the stacks of all threads to a file, and return the file."""
    stacks = path.open("a")
    faulthandler.enable(stacks)
    faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)
    with suppress(ValueError):  # not the main thread, which alone receives Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return stacks


def main() -> None:
    """Run a rank of a local group; its spec is JSON on standard input."""
    die_with_parent()
    spec = json.loads(sys.stdin.readline())
    if os.getppid() == 1:  # the owner died before die_with_parent took effect
        sys.exit(1)
    run_rank(RankSpec(**spec))


if __name__ == "__main__":
    main()
