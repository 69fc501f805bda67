"""Taking the connections of the ranks: of those who know the key, and of nobody else.

A port is open to whoever can reach it: scanners, probes of a load balancer, a rank of a group
that is long gone. So everybody is received in a thread of its own, and has a moment to prove the
key and say which rank it is; who stays silent keeps nobody waiting.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing import connection as mp
from multiprocessing.connection import Connection

from pipeline.errors import WorkerDied

TICK = 0.05
SILENCE = 30.0
"""Seconds without a byte, while one is owed, after which a connection counts as lost: in the
greeting, and later in the middle of a message."""


@dataclass(frozen=True)
class Admitted:
    """A rank that has connected."""

    link: Connection
    pid: int
    host: str


def admit(
    server: socket.socket, key: bytes, world: int, patience: float, check: Callable[[], None]
) -> dict[int, Admitted]:
    """The `world` ranks that connect to a listening socket, by index.

    `check` is called while they are waited for, and may raise.

    Raises:
        WorkerDied: they were not all there within `patience` seconds.
    """
    found: dict[int, Admitted] = {}
    deadline = time.monotonic() + patience
    server.settimeout(TICK)
    try:
        while len(found) < world:
            check()
            if time.monotonic() > deadline:
                raise WorkerDied("the ranks did not start in time")
            with suppress(TimeoutError):
                guest = server.accept()[0]
                threading.Thread(target=_receive, args=(guest, key, found), daemon=True).start()
    except BaseException:
        for admitted in found.values():
            admitted.link.close()
        raise
    return found


def _receive(guest: socket.socket, key: bytes, found: dict[int, Admitted]) -> None:
    """Enter a guest among those found if it proves the key; else send it away."""
    seconds, fraction = divmod(SILENCE, 1.0)
    timeval = struct.pack("ll", int(seconds), int(fraction * 1e6))
    guest.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
    link = Connection(guest.detach())
    try:
        mp.deliver_challenge(link, key)
        mp.answer_challenge(link, key)
        index, pid, host = link.recv()
    except (AuthenticationError, EOFError, OSError):
        link.close()
    else:
        found[index] = Admitted(link, pid, host)
