"""Names that are safe as parts of paths."""

from __future__ import annotations

import pytest

from pipeline.errors import UserError
from pipeline.naming import check_name


@pytest.mark.parametrize("name", ["..", ".a", "A", "a/b", "", "a" * 65, "a\n", "ä", "a\0"])
def test_unsafe_names_are_rejected(name: str) -> None:
    with pytest.raises(UserError, match="is not a valid name for a stage"):
        check_name(name, "a stage")


def test_valid_names_are_returned() -> None:
    assert check_name("tokenize.pack_2-x", "a stage") == "tokenize.pack_2-x"
