"""Groups of ranks that many tests share: starting one takes seconds of imports."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rooms import Room, room


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """Two ranks."""
    yield from room(tmp_path_factory.mktemp("pair"), 2)


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """One rank."""
    yield from room(tmp_path_factory.mktemp("single"), 1)
