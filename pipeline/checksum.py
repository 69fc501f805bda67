"""Checksums within JSON records, by which a flipped bit of a log or a small file is found.

A record holds the CRC-32 of its other fields, which detects every change of up to 32 consecutive
bits. Records without one, of an earlier version, are accepted.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

FIELD = "crc32"


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of JSON's own types with its checksum."""
    return {**record, FIELD: _checksum(record)}


def parse_record(text: bytes | str) -> dict[str, Any]:
    """Return the record that `with_checksum` returned, from JSON and without its checksum.

    Raises:
        ValueError: it is not the JSON of a record, or its fields changed.
    """
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError("not a record")
    checksum = record.pop(FIELD, None)
    if checksum not in (None, _checksum(record)):
        raise ValueError("its bytes changed")
    return record


def _checksum(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())
