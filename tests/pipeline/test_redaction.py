"""Secrets are resolved inside stages only, and never shown."""

from __future__ import annotations

import html
import json
import re
import urllib.parse
from collections.abc import Callable

import pytest

from pipeline.errors import InputError
from pipeline.redaction import escape_control_characters, redact, resolve_secrets, secret_names


def test_secrets_are_read_where_the_stage_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHARD_KEY", "apple")
    monkeypatch.delenv("ORCHARD_NONE", raising=False)
    assert resolve_secrets("no secret") == "no secret"
    assert resolve_secrets("https://${env:ORCHARD_KEY}@host/${x}") == "https://apple@host/${x}"
    with pytest.raises(InputError) as caught:
        resolve_secrets("${env:ORCHARD_NONE}")
    assert caught.value.message == "the secret ORCHARD_NONE is not set"


def test_only_named_secrets_of_some_length_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONG", "abcdef")
    monkeypatch.setenv("PART", "abcd")
    monkeypatch.setenv("TINY", "e")
    monkeypatch.delenv("UNSET", raising=False)
    names = secret_names("x: ${env:LONG} ${env:PART}, ${env:TINY} ${env:UNSET} ${stage}")
    assert names == {"LONG", "PART", "TINY", "UNSET"}
    assert redact("abcdef abcd e", names) == "${env:LONG} ${env:PART} e"


def test_plain_text_is_not_escaped() -> None:
    assert escape_control_characters("ä €\t") == "ä €\t"


HARD_VALUES = [
    "-----BEGIN ORCHARD-----\nAppleApple\nPearPearPear\n-----END ORCHARD-----\n",
    "plum&\"cherry\"<quince>'fig'",
    "walnut/100% almond+ é",
    "two\r\nlines of it",
]


@pytest.mark.parametrize("value", HARD_VALUES)
@pytest.mark.parametrize(
    "quote",
    [str, repr, json.dumps, html.escape, urllib.parse.quote_plus, urllib.parse.quote],
)
def test_a_value_is_found_as_it_is_and_quoted(
    monkeypatch: pytest.MonkeyPatch, value: str, quote: Callable[[str], str]
) -> None:
    monkeypatch.setenv("HARD", value)
    shown = redact(f"before {quote(value)} after", ["HARD"])
    assert shown.startswith("before ") and shown.endswith(" after")
    assert "${env:HARD}" in shown
    for word in re.findall(r"\w{4,}", value):
        assert word not in shown.replace("${env:HARD}", "")


def test_each_line_of_a_value_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARD", HARD_VALUES[0])
    assert redact("  AppleApple |\n> PearPearPear", ["HARD"]) == "  ${env:HARD} |\n> ${env:HARD}"


def test_a_changed_value_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARD", "walnut")
    assert redact("walnut almond", ["HARD"]) == "${env:HARD} almond"
    monkeypatch.setenv("HARD", "almond")
    assert redact("walnut almond", ["HARD"]) == "walnut ${env:HARD}"


def test_references_are_not_searched_for_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRST_NAME", "abcdefgh")
    monkeypatch.setenv("SECOND", "FIRST_NAME")
    assert redact("abcdefgh FIRST_NAME", ["FIRST_NAME", "SECOND"]) == (
        "${env:FIRST_NAME} ${env:SECOND}"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [("\x1b[31m", "\\x1b[31m"), ("a\nb", "a\\nb"), ("\u202e", "\\u202e"), ("\udc80", "\\udc80")],
)
def test_characters_that_move_or_reorder_text_are_codes(text: str, shown: str) -> None:
    assert escape_control_characters(text) == shown
