"""Secrets are resolved inside stages only, and never shown."""

from __future__ import annotations

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
