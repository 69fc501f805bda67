"""Who gets in at the port where ranks are waited for."""

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


class Door:
    """A port with ranks that dial it from threads of this process."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.key = secrets.token_hex(32)
        self.lines: list[socket.socket | Connection] = []
        self.found: dict[int, ConnectedRank] = {}

    def stranger(self, says: bytes = b"") -> socket.socket:
        """Somebody who connects, says that much, and keeps the line."""
        guest = socket.create_connection(self.server.getsockname())
        guest.sendall(says)
        self.lines.append(guest)
        return guest

    def dial(self, index: int, key: str = "") -> None:
        port = self.server.getsockname()[1]
        spec = RankSpec("127.0.0.1", port, key or self.key, index, 2, False, "", {})
        threading.Thread(target=self._dial, args=(spec,), daemon=True).start()

    def _dial(self, spec: RankSpec) -> None:
        with suppress(OSError, EOFError, AuthenticationError):
            self.lines.append(connect(spec))

    def admit(self, world: int = 2, patience: float = 20.0) -> dict[int, ConnectedRank]:
        key = bytes.fromhex(self.key)
        self.found = accept_ranks(self.server, key, world, patience, lambda: None)
        return self.found


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    yield made
    made.server.close()
    for line in made.lines:
        line.close()
    for rank in made.found.values():
        rank.connection.close()


def test_strangers_who_say_nothing_or_nonsense_keep_no_rank_waiting(door: Door) -> None:
    door.stranger()
    door.stranger(b"GET / HTTP/1.1\r\n\r\n")
    door.stranger((64).to_bytes(4, "big") + b"half a")
    door.dial(0)
    door.stranger()
    door.dial(1)
    assert sorted(door.admit()) == [0, 1]


def test_who_does_not_know_the_key_is_sent_away(door: Door) -> None:
    door.dial(0, key=secrets.token_hex(32))
    with pytest.raises(WorkerDied, match="did not start in time"):
        door.admit(world=1, patience=0.5)


def test_ranks_are_looked_after_while_they_are_waited_for(door: Door) -> None:
    """A rank that died before it could connect is not waited for, whoever else calls."""
    guest = door.stranger()

    def check() -> None:
        guest.close()
        raise WorkerDied("rank 0 ended with exit code 1 while starting")

    with pytest.raises(WorkerDied, match="exit code 1"):
        accept_ranks(door.server, bytes.fromhex(door.key), 1, 20, check)
