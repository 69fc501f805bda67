"""The handshake accepts ranks only."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection

import pytest

from pipeline.errors import WorkerDied
from stages.training.ranks.handshake import ConnectedRank, accept_ranks
from stages.training.ranks.rank_process import RankSpec, connect


class Port:
    """A port, and ranks that connect to it from threads of this process."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.key = secrets.token_hex(32)
        self.connections: list[socket.socket | Connection] = []
        self.found: dict[int, ConnectedRank] = {}

    def stranger(self, sent: bytes = b"") -> socket.socket:
        """Connect without the key, send some bytes, and keep the connection open."""
        peer = socket.create_connection(self.server.getsockname())
        peer.sendall(sent)
        self.connections.append(peer)
        return peer

    def connect(self, index: int, key: str = "") -> None:
        port = self.server.getsockname()[1]
        spec = RankSpec("127.0.0.1", port, key or self.key, index, 2, False, "", {})
        threading.Thread(target=self._connect, args=(spec,), daemon=True).start()

    def _connect(self, spec: RankSpec) -> None:
        with suppress(OSError, EOFError, AuthenticationError):
            self.connections.append(connect(spec))

    def accept(self, world: int = 2, timeout: float = 20.0) -> dict[int, ConnectedRank]:
        key = bytes.fromhex(self.key)
        self.found = accept_ranks(self.server, key, world, timeout, lambda: None)
        return self.found


@pytest.fixture
def listener() -> Iterator[Port]:
    made = Port()
    yield made
    made.server.close()
    for connection in made.connections:
        connection.close()
    for rank in made.found.values():
        rank.connection.close()


def test_silent_or_invalid_connections_delay_no_rank(listener: Port) -> None:
    listener.stranger()
    listener.stranger(b"GET / HTTP/1.1\r\n\r\n")
    listener.stranger((64).to_bytes(4, "big") + b"half a")
    listener.connect(0)
    listener.stranger()
    listener.connect(1)
    assert sorted(listener.accept()) == [0, 1]


def test_a_connection_without_the_key_is_closed(listener: Port) -> None:
    listener.connect(0, key=secrets.token_hex(32))
    with pytest.raises(WorkerDied, match="did not start in time"):
        listener.accept(world=1, timeout=0.5)


def test_processes_are_checked_while_waiting_for_ranks(listener: Port) -> None:
    """A rank that died before it connected is noticed, whatever else connects."""
    peer = listener.stranger()

    def check() -> None:
        peer.close()
        raise WorkerDied("rank 0 ended with exit code 1 while starting")

    with pytest.raises(WorkerDied, match="exit code 1"):
        accept_ranks(listener.server, bytes.fromhex(listener.key), 1, 20, check)
