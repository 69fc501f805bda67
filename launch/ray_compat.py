"""Everything that relies on undocumented behaviour of Ray, checked against Ray 2.60.0.

tests/launch/test_ray_compat.py fails when a work-around is no longer needed or no longer works.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKED_VERSION = "2.60.0"

NODE_TIMEOUT_ENV = {
    # A raylet of a machine that stood still (suspended, or overloaded) is given time to answer. A
    # raylet that is dead refuses the connection and is noticed at once.
    "RAY_health_check_timeout_ms": "60000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
}
PROCESS_ENV = {
    **NODE_TIMEOUT_ENV,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
    "SPT_NOENV": "1",  # setproctitle writes process titles over the environment in /proc
}
"""Environment of every Ray that is started here."""
LOOPBACK_ENV = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Makes every server of a Ray that is started here bind loopback, metrics included; there is no
documented setting, and `_node_ip_address` of `ray.init` has no effect on a new cluster."""
MAX_SOCKET_PATH = 107  # bytes of a Unix socket path; Ray creates sockets below its folder
LONGEST_SOCKET = (
    "/headwater-4194304-abcdefgh/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
)


def temporary_root() -> Path:
    """Return the folder for temporary files; /tmp if its path is too long for Ray's sockets."""
    root = tempfile.gettempdir()
    return Path(root if len(root) < 20 else "/tmp")  # noqa: S108


def start_command(*options: str) -> list[str]:
    """Return the `ray start` command line; Ray cannot be run as `python -m ray`."""
    return [sys.executable, "-m", "ray.scripts.scripts", "start", *options]


def embedded_env() -> dict[str, str]:
    """Return the environment that must be set before an embedded Ray starts, without the variables
    that the user has set."""
    from secrets import token_hex

    env = {"RAY_AUTH_TOKEN": token_hex(32), **PROCESS_ENV}  # Ray writes one to $HOME otherwise
    if "RAY_AUTH_TOKEN_PATH" in os.environ:  # the token of the cluster that this process is part of
        del env["RAY_AUTH_TOKEN"]
    return {name: value for name, value in env.items() if name not in os.environ}


def bind_to_loopback() -> None:
    """Bind the Ray that this process starts next to loopback, also if Ray was imported before the
    variable was set."""
    from ray._private import ray_constants

    os.environ.update(LOOPBACK_ENV)
    ray_constants.ENABLE_RAY_CLUSTER = False


def silence_worker_messages() -> None:
    """Stop Ray from printing deaths of workers to standard output, between lines of JSON."""
    import ray

    ray._private.worker._worker_logs_enabled = False


@contextmanager
def preserve_signal_handlers() -> Iterator[None]:
    """Restore the handlers of SIGINT and SIGTERM after the block: Ray installs a SIGTERM handler
    that ends the driver at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
