"""A store with a finished run, and calls of commands on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import sample_run
from command_calls import Call, call_command
from fake_ray_head import FakeRayHead, serve_head

from pipeline.execution.run import Run
from pipeline.storage.store import Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name in ("HEADWATER_STORE", "MLFLOW_TRACKING_URI", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def finished_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a store with one finished run, once; each test copies it."""
    root = tmp_path_factory.mktemp("finished") / "store"
    sample_run.make(root, steps=30)
    return root


@pytest.fixture
def run(finished_store: Path, store: Store) -> Run:
    shutil.copytree(finished_store, store.root)
    return Run.find(store)


@pytest.fixture
def call(store: Store) -> Call:
    return partial(call_command, str(store.root))


@pytest.fixture
def head() -> Iterator[FakeRayHead]:
    with serve_head() as served:
        yield served
