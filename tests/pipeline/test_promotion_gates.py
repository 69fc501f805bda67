"""The syntax of promotion gates."""

from __future__ import annotations

import pytest

from pipeline.errors import UserError
from pipeline.promotion_gates import Gate, check_alias


@pytest.mark.parametrize(
    "text",
    [
        "",
        "perplexity",
        "a.b<",
        "a.b<x",
        "a.b!=3",
        "a.b=3",
        "a.b<nan",
        "a.b<inf",
        "a.b<champion*2",
        "a.b<champion+",
        "a.b<champion+x",
        "a b<3",
        "a.b<3 4",
    ],
)
def test_what_is_not_a_gate_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not a gate"):
        Gate.parse(text)


def test_a_gate_compares_with_a_number_or_with_the_champion() -> None:
    number = Gate.parse(" evaluate.perplexity < 18.4 ")
    assert (number.text, number.metric) == ("evaluate.perplexity < 18.4", "evaluate.perplexity")
    assert (number.compare, str(number.number), number.relative) == ("<", "18.4", False)
    margin = Gate.parse("reward.accuracy>=champion + 0.01")
    assert (margin.compare, str(margin.number), margin.relative) == (">=", "0.01", True)
    assert Gate.parse("a.b==champion").number == 0


@pytest.mark.parametrize("alias", ["latest", "V12", "a.b", "", "1a"])
def test_invalid_aliases(alias: str) -> None:
    with pytest.raises(UserError):
        check_alias(alias)
