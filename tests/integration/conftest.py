"""Groups of ranks that many tests share: starting one takes seconds of imports."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rank_groups import RankGroup, running_ranks


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankGroup]:
    """Two ranks."""
    with running_ranks(tmp_path_factory.mktemp("pair"), 2) as made:
        yield made


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankGroup]:
    """One rank."""
    with running_ranks(tmp_path_factory.mktemp("single"), 1) as made:
        yield made
