"""Data of any origin becomes JSON that every parser accepts."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plain_data import read_number, read_numbers, to_json, to_plain

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


def refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@given(value=values)
def test_everything_is_strict_json_that_is_read_back(value: Any) -> None:
    text = to_json(value, ensure_ascii=False)
    text.encode()
    assert json.loads(text, parse_constant=refuse) == to_plain(value)


@given(value=values)
def test_a_number_is_finite_or_none(value: Any) -> None:
    number = read_number(value)
    assert number is None or math.isfinite(number)


@pytest.mark.parametrize("value", [math.nan, math.inf, "nan", "-inf", "Infinity", None, 10**400])
def test_what_has_no_finite_value_is_none(value: object) -> None:
    assert read_numbers({"loss": value}) == {"loss": None}


def test_numbers_of_libraries_stay_numbers() -> None:
    given_values = [np.float32(0.5), np.int64(3), Fraction(1, 4), np.float64("nan"), True]
    assert to_plain(given_values) == [0.5, 3, 0.25, None, True]
    assert to_plain({1: Path("/x"), "d": Decimal("1.5")}) == {"1": "/x", "d": "1.5"}


def test_secrets_are_named_in_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHARD_KEY", "pear-tree")
    found = to_plain({"a pear-tree": ["pear-tree", 1]}, {"ORCHARD_KEY"})
    assert found == {"a ${env:ORCHARD_KEY}": ["${env:ORCHARD_KEY}", 1]}
