"""Three ways in which an MLflow server can be out of order, for tests and benchmarks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def refused() -> Iterator[tuple[int, Callable[[], bool]]]:
    """A port at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    yield port, lambda: True


@contextmanager
def silent() -> Iterator[tuple[int, Callable[[], bool]]]:
    """Takes the call and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        calls: list[socket.socket] = []

        def listen() -> None:
            while True:
                try:
                    calls.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=listen)
        thread.start()
        yield server.getsockname()[1], lambda: bool(calls)
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for call in calls:
            call.close()


@contextmanager
def broken() -> Iterator[tuple[int, Callable[[], bool]]]:
    """Answers everything with 500."""
    calls: list[str] = []

    class Broken(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            calls.append(self.path)
            self.send_error(500)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1], lambda: bool(calls)
        server.shutdown()
        thread.join()
