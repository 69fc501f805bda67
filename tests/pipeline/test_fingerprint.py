"""What identifies an artifact, and what may not."""

from __future__ import annotations

import enum
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import orchard
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from orchard import steady

from pipeline.errors import NotCanonical
from pipeline.fingerprint import (
    canonical_json,
    describe_changes,
    fingerprint,
    format_value,
    identity_fields,
    identity_payload,
)
from pipeline.stage import Stage, Workers

text = st.text(st.characters(exclude_categories=["Cs"]))
floats = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
    max_leaves=8,
)
PLANT = Stage.registry["orchard.plant"]


class Number(float):
    """Prints as it likes."""


class Colour(enum.StrEnum):
    RED = "red"


def planted(**params: Any) -> dict[str, Any]:
    return identity_payload(PLANT, orchard.Plant(**{"rows": 2, **params}), {}, {})


# --- the encoder -------------------------------------------------------------------------------


def test_the_byte_form_is_fixed() -> None:
    """Changing it would make every artifact anew."""
    value = {"b": [1, 1.0, 1e-4, -0.0, True, None], "a": ("é", {"z": {}})}
    assert (
        canonical_json(value) == '{"a":["é",{"z":{}}],"b":[1,1.0,0.0001,-0.0,true,null]}'.encode()
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"f": print}, "value.f: a builtin_function_or_method has no one byte form"),
        ({"f": [0, lambda: 0]}, "value.f[1]: a function has no one byte form"),
        ({1, 2}, "value: a set has no one byte form"),
        (b"x", "value: a bytes has no one byte form"),
        (object(), "value: a object has no one byte form"),
        (Path("x"), "value: a PosixPath has no one byte form"),
        (Number(1), "value: a Number has no one byte form"),
        (Colour.RED, "value: a Colour has no one byte form"),
        (orchard.Soil(), "value: a Soil has no one byte form"),
        (math.nan, "value: nan is not a finite number"),
        ([-math.inf], "value[0]: -inf is not a finite number"),
        ({1: 2}, "value: the key 1 is not text"),
        ({"\ud800": 1}, r"value: '\ud800' is not Unicode text"),
        ("\udfff", r"value: '\udfff' is not Unicode text"),
    ],
    ids=str,
)
def test_what_has_no_one_form_is_refused(value: Any, message: str) -> None:
    with pytest.raises(NotCanonical) as caught:
        canonical_json(value)
    assert caught.value.message == message


@steady
@given(plain)
def test_equal_bytes_mean_equal_values(value: Any) -> None:
    """JSON reads back what was written, types and last bits of floats included."""
    back = json.loads(canonical_json(value))
    assert back == value
    assert canonical_json(back) == canonical_json(value)


@steady
@given(st.dictionaries(text, floats, max_size=4), st.data())
def test_the_order_of_keys_is_nothing(value: dict[str, float], data: st.DataObject) -> None:
    keys = data.draw(st.permutations(list(value)))
    assert canonical_json({"x": {key: value[key] for key in keys}}) == canonical_json({"x": value})


@steady
@given(plain, plain)
@example(1, 1.0)
@example(1, True)
@example(0.0, -0.0)
@example([], {})
@example("1", 1)
@example(0.1, math.nextafter(0.1, 1))
def test_different_values_have_different_bytes(a: Any, b: Any) -> None:
    same = repr(_sorted(a)) == repr(_sorted(b))
    assert (canonical_json(a) == canonical_json(b)) == same


def _sorted(value: Any) -> Any:
    """repr distinguishes 1, 1.0 and True, which == does not."""
    if isinstance(value, dict):
        return sorted((key, _sorted(item)) for key, item in value.items()), "mapping"
    return [_sorted(item) for item in value] if isinstance(value, list) else value


# --- identity ----------------------------------------------------------------------------------


def test_identity_holds_defaults_and_no_execution_fields_at_any_depth() -> None:
    params = orchard.Plant(rows=2, beds=(orchard.Soil(), orchard.Soil(depth=3)), prices={"a": 2})
    found = identity_fields(params)
    soil = {"depth": 10, "kind": "clay", "grit": 0.5}
    assert found["water"] == 1.0
    assert isinstance(found["water"], float)
    assert found["soil"] == soil
    assert found["beds"] == [soil, {**soil, "depth": 3}]
    assert found["light"] == {"family": "sun", "hours": 6}
    assert found["prices"] == {"a": 2.0}
    assert not {"workers", "retries", "tools"} & set(found)


@steady
@given(st.integers(1, 64), st.integers(0, 9), st.text())
def test_how_the_work_is_done_changes_no_fingerprint(num: int, tools: int, spade: str) -> None:
    way = {"workers": Workers(num=num), "tools": tools, "soil": orchard.Soil(spade=spade)}
    assert fingerprint(planted(**way)) == fingerprint(planted())


@steady
@given(st.integers(), st.integers(), floats, floats)
def test_what_is_made_changes_the_fingerprint(a: int, b: int, x: float, y: float) -> None:
    one, other = planted(pairs=2 * a, water=x), planted(pairs=2 * b, water=y)
    same = (a, repr(x)) == (b, repr(y))
    assert (fingerprint(one) == fingerprint(other)) == same


def test_a_payload_holds_all_that_decides() -> None:
    params = orchard.Press(sweetness=2)
    stage = Stage.registry["orchard.press"]
    found = identity_payload(stage, params, {"trees": ("a", "b")}, {"recipe.txt": "c"})
    assert found == {
        "format": 1,
        "stage": "orchard.press",
        "version": 1,
        "params": {"sweetness": 2.0},
        "inputs": {"trees": ["a", "b"]},
        "externals": {"recipe.txt": "c"},
    }
    expected = hashlib.sha256(canonical_json(found)).hexdigest()[:16]
    assert fingerprint(found) == expected == fingerprint(json.loads(json.dumps(found)))


# --- differences -------------------------------------------------------------------------------


def test_nothing_changed() -> None:
    assert describe_changes(json.loads(json.dumps(planted())), planted()) == []


def test_changes_name_the_field_and_both_values() -> None:
    old = planted(water=3e-4, soil=orchard.Soil(depth=3), names=("a",), label="x")
    new = planted(water=2e-4, soil=orchard.Soil(kind="sand"), names=("a", "b"))
    assert describe_changes(old, new) == [
        "water 3e-4 -> 2e-4",
        "label x -> null",
        'names ["a"] -> ["a", "b"]',
        "soil.depth 3 -> 10",
        "soil.kind clay -> sand",
    ]


def test_changes_tell_new_fields_from_gone_ones() -> None:
    old, new = planted(), planted()
    del old["params"]["water"]
    del new["params"]["label"]
    new["params"]["pairs"] = True
    assert describe_changes(old, new) == ["water (new) 1.0", "pairs 2 -> true", "label (gone) null"]


def test_changes_outside_the_parameters() -> None:
    old = {"version": 1, "inputs": {"t": ["a"], "u": ["b"]}, "externals": {"x": "1", "y": "2"}}
    new = {"version": 2, "inputs": {"t": ["z"], "v": ["b"]}, "externals": {"x": "1", "z": "2"}}
    assert describe_changes(old, new, {"t": ["clean", "clean", "dirty"]}) == [
        "version 1 -> 2",
        "upstream clean or dirty changed",
        "upstream v changed",
        "upstream u changed",
        "source z changed",
        "source y changed",
    ]
    assert describe_changes({"format": 0}, {"format": 1}) == ["format 0 -> 1"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3e-4, "3e-4"),
        (-2.5e-05, "-2.5e-5"),
        (1.5e-3, "0.0015"),
        (0.1, "0.1"),
        (1e6, "1e6"),
        (0.0, "0.0"),
        (12345.678, "12345.678"),
        (math.inf, "Infinity"),
        (7, "7"),
        ("text", "text"),
        ("t" * 50, "t" * 39 + "…"),
        (None, "null"),
    ],
)
def test_values_are_formatted_briefly(value: Any, shown: str) -> None:
    assert format_value(value) == shown


@steady
@given(floats)
def test_a_shown_number_is_the_number(value: float) -> None:
    assert float(format_value(value)) == value
