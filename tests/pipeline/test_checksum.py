"""Checksums of records: every flipped bit is found."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checksum import FIELD, parse_record, with_checksum

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(record=st.dictionaries(st.text().filter(FIELD.__ne__), VALUES))
def test_a_record_is_read_as_it_was_written(record: dict[str, Any]) -> None:
    assert parse_record(json.dumps(with_checksum(record))) == record
    assert parse_record(json.dumps(record)) == record  # of an earlier version


def test_a_flipped_bit_is_never_read_as_another_record() -> None:
    record = {"metrics": {"loss": 1.25}, "event": "stage.finished", "name": "wörter"}
    line = json.dumps(with_checksum(record), ensure_ascii=False).encode()
    for position in range(8 * len(line)):
        flipped = bytearray(line)
        flipped[position // 8] ^= 1 << position % 8
        try:
            read = parse_record(bytes(flipped))
        except ValueError:
            continue
        assert {key: read[key] for key in record} == record


@pytest.mark.parametrize(
    "text", ["[]", "1", "{", b"\xff", '{"a": 1, "crc32": 2}', '{"crc32": "x"}']
)
def test_what_is_no_record_is_an_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_record(text)
