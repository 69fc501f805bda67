"""A Ray head with fixed answers, and a run that was submitted to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import sample_run

from launch.cluster.config import Cluster, load_cluster
from pipeline.execution.run import Run
from pipeline.storage.store import Store


@dataclass
class FakeRayHead:
    """Head that answers a path with the JSON value in `answers`, or with 404."""

    address: str
    answers: dict[str, Any]


@contextmanager
def serve_head() -> Iterator[FakeRayHead]:
    """Serve a head inside the block."""
    answers: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path not in answers:
                return self.send_error(404)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answers[self.path]).encode())
            return None

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield FakeRayHead(f"http://127.0.0.1:{server.server_address[1]}", answers)
        server.shutdown()
        thread.join()


def make_submitted_run(store: Store, address: str) -> tuple[Run, Cluster]:
    """Make a run that was interrupted on the cluster at an address."""
    run = sample_run.make(store.root, names=("clean",), finish=False)
    file = store.root / "far.yaml"
    file.write_text(f"address: {address}\n")
    record = {"cluster": str(file), "root": "", "jobs": [run.id]}
    (run.folder / "job.json").write_text(json.dumps(record))
    return run, load_cluster(str(file), str(store.root))
