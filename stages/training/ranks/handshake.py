"""Accepts the connections of the ranks, and of no other process.

The port is open to every process that can reach it: scanners, probes of a load balancer, a rank of
a group that ended long ago. So each connection is received in a thread of its own, and has limited
time to prove the key and to send its rank index; a silent one delays no other.
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

POLL_INTERVAL = 0.05
RECEIVE_TIMEOUT = 30.0
"""Seconds without a byte, while one is owed, after which a connection counts as lost: in the
handshake, and later in the middle of a message."""


@dataclass(frozen=True)
class ConnectedRank:
    """A rank that has proved the key."""

    connection: Connection
    pid: int
    host: str


def accept_ranks(
    server: socket.socket, key: bytes, world: int, timeout: float, check: Callable[[], None]
) -> dict[int, ConnectedRank]:
    """Accept `world` ranks on a listening socket, and return them by index.

    `check` is called while they are waited for, and may raise.

    Raises:
        WorkerDied: they have not all connected within `timeout` seconds.
    """
    ranks: dict[int, ConnectedRank] = {}
    deadline = time.monotonic() + timeout
    server.settimeout(POLL_INTERVAL)
    try:
        while len(ranks) < world:
            check()
            if time.monotonic() > deadline:
                raise WorkerDied("the ranks did not start in time")
            with suppress(TimeoutError):
                peer = server.accept()[0]
                threading.Thread(target=_authenticate, args=(peer, key, ranks), daemon=True).start()
    except BaseException:
        for rank in ranks.values():
            rank.connection.close()
        raise
    return ranks


def _authenticate(peer: socket.socket, key: bytes, ranks: dict[int, ConnectedRank]) -> None:
    """Add a peer to the ranks if it proves the key, or else close its connection."""
    seconds, fraction = divmod(RECEIVE_TIMEOUT, 1.0)
    timeval = struct.pack("ll", int(seconds), int(fraction * 1e6))
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
    connection = Connection(peer.detach())
    try:
        mp.deliver_challenge(connection, key)
        mp.answer_challenge(connection, key)
        index, pid, host = connection.recv()
    except (AuthenticationError, EOFError, OSError):
        connection.close()
    else:
        ranks[index] = ConnectedRank(connection, pid, host)
