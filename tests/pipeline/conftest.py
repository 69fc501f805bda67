"""What the engine's tests share: folders in memory, and no deadline on a busy machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from memory import Folders, folders_in_memory

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def tmp_path_factory() -> Iterator[Folders]:
    with folders_in_memory() as folders:
        yield folders


@pytest.fixture
def tmp_path(tmp_path_factory: Folders) -> Path:
    return tmp_path_factory.mktemp("test")
