"""Each work-around for Ray is still needed and still works.

A failure after an upgrade of Ray means: check the work-around in launch/ray_compat.py, remove it if
it is no longer needed, else adapt it and raise CHECKED_VERSION.
"""

from __future__ import annotations

import inspect
import signal
from importlib.util import find_spec

import pytest

from launch import ray_compat

ray = pytest.importorskip("ray")


def test_the_installed_version_was_checked() -> None:
    assert ray.__version__ == ray_compat.CHECKED_VERSION


def test_ray_has_no_module_entry_point() -> None:
    assert find_spec("ray.__main__") is None
    assert find_spec("ray.scripts.scripts") is not None


def test_worker_messages_depend_on_the_private_flag() -> None:
    worker = ray._private.worker
    assert "_worker_logs_enabled" in inspect.getsource(worker.print_worker_logs)
    assert worker._worker_logs_enabled in (True, False)


def test_ray_installs_a_sigterm_handler() -> None:
    assert "set_sigterm_handler" in inspect.getsource(ray._private.worker.init)
    before = signal.getsignal(signal.SIGTERM)
    with ray_compat.preserve_signal_handlers():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is before


def test_loopback_is_controlled_by_an_undocumented_variable() -> None:
    from ray._private import ray_constants

    assert ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR in ray_compat.LOOPBACK_ENV


def test_embedded_env_keeps_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    env = ray_compat.embedded_env()
    assert "OMP_NUM_THREADS" not in env
    assert len(env["RAY_AUTH_TOKEN"]) == 64
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/token")
    assert "RAY_AUTH_TOKEN" not in ray_compat.embedded_env()
