"""The store at which ranks of one machine meet."""

from __future__ import annotations

import datetime

import psutil
import pytest

from stages.training.ranks.rank_process import LOOPBACK, RankServer, RankSpec


def listening() -> set[tuple[str, int]]:
    links = psutil.Process().net_connections("tcp")
    return {tuple(link.laddr) for link in links if link.status == psutil.CONN_LISTEN}


def test_the_store_of_one_machine_listens_on_loopback() -> None:
    distributed = pytest.importorskip("torch._C._distributed_c10d")
    before = listening()
    server = RankServer(RankSpec(LOOPBACK, 0, "", 0, 2, False, "", {}), None)  # type: ignore[arg-type]
    port = server.host(LOOPBACK)
    assert listening() - before == {(LOOPBACK, port)}
    client = distributed.TCPStore(LOOPBACK, port, 2, False, datetime.timedelta(seconds=20))
    client.set("key", "value")
    assert server._store.get("key") == b"value"
