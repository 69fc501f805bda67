"""What the validator finds, in plain words (bad_configs.txt shows them in whole files)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field, ValidationError

from pipeline.spec.validation_messages import (
    ValidationIssue,
    describe_value,
    type_remedy,
    validation_issues,
)
from pipeline.stage import Section, UnsupportedKeys


class Inner(Section):
    size: int

    renamed: ClassVar[dict[str, str]] = {"extent": "size"}


class Outer(Section):
    choice: Inner | list[Inner] | None = None
    table: dict[str, Inner] = Field(default_factory=dict)
    switch: bool | str = False
    long: Annotated[str, Field(max_length=1)] = ""

    unsupported_keys: ClassVar[UnsupportedKeys] = {
        "dize": ("there is no dize", "say size"),
        "width": "size",
        "breadth": "no_such_key",
    }


def wrong(data: dict[str, Any]) -> list[ValidationIssue]:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(data, strict=True)
    return validation_issues(caught.value, Outer, data, ["edge"])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "nothing"),
        (True, "true"),
        ("a", "the text 'a'"),
        ("b" * 50, f"the text '{'b' * 39}…'"),
        (3, "3"),
        (1e-4, "0.0001"),
        ({}, "a section"),
        ([], "a list"),
    ],
)
def test_values_are_described_in_plain_words(value: Any, words: str) -> None:
    assert describe_value(value) == words


@pytest.mark.parametrize(
    ("expected", "value", "words"),
    [
        (["text"], 3, "put it in quotes"),
        (["text"], [3], ""),
        (["true or false"], "Off", "write true or false"),
        (["a number"], "off", ""),
        (["a number"], "3", ""),
    ],
)
def test_remedies(expected: list[str], value: Any, words: str) -> None:
    assert type_remedy(expected, value) == words


def test_a_branch_of_a_union_that_nearly_fits_hides_the_others() -> None:
    found = wrong({"choice": [{"size": "x"}, {"siz": 1}]})
    assert found == [
        ValidationIssue(("choice", 0, "size"), "expected a whole number, got the text 'x'"),
        ValidationIssue(("choice", 1, "size"), "missing", "add `size: …`"),
        ValidationIssue(("choice", 1, "siz"), "unknown key", "did you mean 'size'?"),
    ]


def test_branches_of_a_union_are_alternatives() -> None:
    message = "expected a section of `key: value` lines or a list, got 3"
    assert wrong({"choice": 3}) == [ValidationIssue(("choice",), message)]
    assert wrong({"switch": 3}) == [
        ValidationIssue(("switch",), "expected true or false or text, got 3", "put it in quotes")
    ]


def test_keys_of_mappings_are_no_fields() -> None:
    assert wrong({"table": {"a": {"sise": 1, "size": 2}}}) == [
        ValidationIssue(("table", "a", "sise"), "unknown key", "did you mean 'size'?")
    ]


def test_the_edges_of_a_stage_stand_beside_its_parameters() -> None:
    assert wrong({"edgy": 1}) == [ValidationIssue(("edgy",), "unknown key", "did you mean 'edge'?")]
    assert wrong({"table": {"a": {"size": 1, "edgy": 1}}})[0].remedy == "known: size"


@pytest.mark.parametrize("data", [{"Dize": 1}, {"table": {"a": {"size": 1, "dize": 2}}}])
def test_an_unsupported_key_gives_its_own_message(data: dict[str, Any]) -> None:
    (found,) = wrong(data)
    assert found.path[-1] in ("dize", "Dize")
    assert (found.message, found.remedy) == ("there is no dize", "say size")


def test_a_former_key_gives_its_new_name_wherever_the_section_stands() -> None:
    for data, path in [
        ({"choice": {"extent": 1, "size": 1}}, ("choice", "extent")),
        ({"choice": [{"extent": 1, "size": 1}]}, ("choice", 0, "extent")),
        ({"table": {"a": {"extent": 1, "size": 1}}}, ("table", "a", "extent")),
    ]:
        found = wrong(data)
        assert ValidationIssue(path, "renamed to 'size'", "write `size: …`") in found


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        ({"Width": 1}, "its name here is choice.size or table.size"),
        ({"size": 1}, "its name here is choice.size or table.size"),
        ({"table": {"a": {"size": 1, "long": "x"}}}, "its name here is long"),
        ({"breadth": 1}, "known: choice, edge, long, switch, table"),
    ],
)
def test_a_key_of_another_section_or_framework_is_answered_with_its_place(
    data: dict[str, Any], remedy: str
) -> None:
    [found] = wrong(data)
    assert (found.message, found.remedy) == ("unknown key", remedy)
