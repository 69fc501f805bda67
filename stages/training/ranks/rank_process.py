"""The process of one rank: `python -m stages.training.ranks.rank_process`, or the same inside a Ray actor.

It connects to its owner, imports what training needs, joins the process group, and then does what
it is told: `call` a function with its rank. A thread shows the watchdog its pulse; another one
listens, so that the process ends with its owner whatever its main thread is stuck in. Nothing of
torch is imported before the environment is set.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import logging
import os
import queue
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import IO, Any

from pipeline.errors import Failure, HeadwaterError

BEAT = 0.5
"""Seconds between two signs of life."""
_PDEATHSIG = 1


@dataclass(frozen=True)
class Post:
    """Where a rank's owner waits, and what the rank is."""

    host: str
    port: int
    key: str
    """Hex; both sides prove that they know it before anything is unpickled."""
    index: int
    world: int
    gpu: bool
    logs: str
    environment: Mapping[str, str]
    paths: tuple[str, ...] = ()
    """Where the owner imports from: what it sends must be found here too."""


def environment(cpus: float, gpu: bool, cache: Path) -> dict[str, str]:
    """What a rank's process is to find in its environment.

    DeepSpeed builds extensions into a folder that a killed build leaves locked for ever, hence a
    private one; and on a CPU it would build one at once, hence `quiet` below.
    """
    threads = str(max(1, int(cpus)))
    place = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"} if gpu else {"DS_ACCELERATOR": "cpu"}
    return {
        **place,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_EXTENSIONS_DIR": str(cache / "torch-extensions" / f"py{sys.version_info.minor}"),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TRANSFORMERS_OFFLINE": "1",
    }


def serve(post: Post, connection: Connection | None = None) -> None:
    """Be a rank until the owner closes the connection."""
    log = _redirect(Path(post.logs), post.index)
    os.environ.update(post.environment)
    sys.path += [path for path in post.paths if path not in sys.path]
    link = Link(connection or dial(post), post)
    from stages.training.ranks.rank import Pulse

    pulse = Pulse()
    threading.Thread(target=link.listen, args=(_dumper(post, log),), daemon=True).start()
    threading.Thread(target=link.beat, args=(pulse,), daemon=True).start()
    member = Member(post, pulse)
    while True:
        number, verb, *rest = link.orders.get()
        try:
            link.send("done", number, getattr(member, verb)(*rest))
        except BaseException as error:
            traceback.print_exc()
            link.send("failed", number, portable(error, post))


class Member:
    """What the owner can ask of a rank, one method an order."""

    def __init__(self, post: Post, pulse: Any) -> None:
        self._post = post
        self._pulse = pulse
        self._store: Any = None
        self._rank: Any = None

    def prepare(self) -> None:
        """Import what takes seconds to import; all ranks do so at the same time."""
        quiet()
        import torch

        torch.set_num_threads(int(self._post.environment["OMP_NUM_THREADS"]))

    def host(self, address: str) -> int:
        """Open the place where the ranks meet, at a port that is free; rank 0 only."""
        from torch._C._distributed_c10d import TCPStore

        from stages.training.ranks.rank import TIMEOUT

        world = self._post.world
        self._store = TCPStore(address, 0, world, True, TIMEOUT, wait_for_workers=False)
        return int(self._store.port)

    def join(self, address: str, port: int, ctx: Any) -> None:
        """Meet the other ranks. Only rank 0 reports to the context."""
        from torch._C._distributed_c10d import TCPStore

        from stages.training.ranks.rank import TIMEOUT, Rank

        index, world = self._post.index, self._post.world
        if address == "127.0.0.1" and sys.platform == "linux":
            # All on this machine: whatever its name resolves to, they can talk.
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        if self._store is None:
            self._store = TCPStore(address, port, world, False, TIMEOUT)
        self._rank = Rank.join(
            index,
            world,
            self._store,
            gpu=self._post.gpu,
            ctx=None if index else ctx,
            pulse=self._pulse,
        )

    def call(self, function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """`function(rank, *arguments, **named)`."""
        self._pulse.start()
        return function(self._rank, *arguments, **named)


def quiet() -> None:
    """Import DeepSpeed without its builds, its chatter, MLflow (2 s) for its autotuner, and torch's
    compiler (5 s) for an optimizer that nobody asked for."""
    with warnings.catch_warnings(), _absent("mlflow"), _uncompiled():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.runtime.zero.muon.original_muon
    # A killed build of this operator would leave a lock that hangs every later run; and where a
    # compiler is missing it fails. gloo alone is as fast for what we send.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It warns of every step that it skips; so does the loop, in the stage's log.
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # Torch renames collectives that DeepSpeed still calls by their old names, at every call.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """Let a module seem not to be installed, unless it is imported already."""
    missing = name not in sys.modules
    if missing:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if missing:
            del sys.modules[name]


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Let `torch.compile` leave what it decorates as it is."""
    import torch

    def plain(model: Any = None, **_: Any) -> Any:
        return plain if model is None else model

    compiled, torch.compile = torch.compile, plain
    try:
        yield
    finally:
        torch.compile = compiled


def portable(error: BaseException, post: Post) -> HeadwaterError:
    """An error as the owner raises it: ours as it is, others with a pointer to the rank's log."""
    if isinstance(error, HeadwaterError):
        return error
    log = str(Path(post.logs) / f"rank-{post.index}.log")
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        remedy = "lower train.micro_batch_size, or raise train.zero_stage or the number of workers"
        return Failure("out of memory", where=f"rank {post.index}", remedy=remedy)
    line = (str(error).strip() or "no message").splitlines()[0]
    return Failure(
        f"{type(error).__name__}: {line}", where=f"rank {post.index}", remedy=f"see {log}"
    )


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PDEATHSIG, signal.SIGKILL)


class Link:
    """The connection to the owner, used by three threads."""

    def __init__(self, connection: Connection, post: Post) -> None:
        self._connection = connection
        self._post = post
        self._lock = threading.Lock()
        self.orders: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()

    def send(self, verb: str, *rest: Any) -> None:
        """Tell the owner; a rank whose owner is gone is of no use."""
        try:
            with self._lock:
                self._connection.send((verb, *rest))
        except OSError:
            os._exit(1)

    def listen(self, dump: Any) -> None:
        """Take orders until the owner is gone, then end the process, whatever it is doing."""
        with suppress(EOFError, OSError):
            while (verb := self._connection.recv()) != "leave":
                if verb == "dump":
                    dump()
                else:
                    self._take(verb)
        os._exit(0)

    def _take(self, number: int) -> None:
        """Receive the order of that number; it may name what cannot be imported here."""
        try:
            self.orders.put((number, *self._connection.recv()))
        except (EOFError, OSError):
            raise
        except Exception as error:
            traceback.print_exc()
            self.send("failed", number, portable(error, self._post))

    def beat(self, pulse: Any) -> None:
        """Show the pulse, some times a second."""
        pause = threading.Event()
        while not pause.wait(BEAT):
            self.send("beat", pulse.count, pulse.waits, pulse.step_seconds)


def dial(post: Post) -> Connection:
    """Connect to the owner; each proves to the other that it knows the key."""
    connection: Connection = Client((post.host, post.port), authkey=bytes.fromhex(post.key))
    connection.send((post.index, os.getpid(), socket.gethostname()))
    return connection


def _redirect(folder: Path, index: int) -> IO[str]:
    """Send all output, that of libraries in C too, to the rank's log; stacks go to their file."""
    folder.mkdir(parents=True, exist_ok=True)
    log = (folder / f"rank-{index}.log").open("a", buffering=1)
    sys.stdout.flush()
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = sys.stderr = log
    stacks = (folder / f"stacks-{index}.txt").open("a")
    faulthandler.enable(stacks)
    faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)
    with suppress(ValueError):  # not the main thread: then nobody's Ctrl-C comes here anyway
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return stacks


def _dumper(post: Post, stacks: IO[str]) -> Any:
    return lambda: faulthandler.dump_traceback(stacks, all_threads=True)


def main() -> None:
    """A rank of a local group: its post comes as JSON on standard input."""
    die_with_parent()
    facts = json.loads(sys.stdin.readline())
    if os.getppid() == 1:  # the owner died before the wish to die with it was known
        sys.exit(1)
    serve(Post(**facts))


if __name__ == "__main__":
    main()
