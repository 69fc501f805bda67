"""What the engine's tests share: folders in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from memory_folders import Folders, folders_in_memory


@pytest.fixture(scope="session")
def tmp_path_factory() -> Iterator[Folders]:
    with folders_in_memory() as folders:
        yield folders


@pytest.fixture
def tmp_path(tmp_path_factory: Folders) -> Path:
    return tmp_path_factory.mktemp("test")
