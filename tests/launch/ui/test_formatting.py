from __future__ import annotations

import math

import pytest

from launch.ui import formatting


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, ""),
        (math.inf, ""),
        (0, "0 s"),
        (0.04, "0.0 s"),
        (7, "7 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1m 00s"),
        (185, "3m 05s"),
        (3600, "1h 00m"),
        (7800, "2h 10m"),
        (3 * 86400 + 4 * 3600, "3d 04h"),
    ],
)
def test_durations(seconds: float | None, expected: str) -> None:
    assert formatting.duration(seconds) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (0, "0"),
        (12.0, "12"),
        (4190, "4,190"),
        (12345.6, "12,346"),
        (99_999.6, "100 k"),
        (3.14e23, "3.14e23"),
        (123_456, "123 k"),
        (999_499, "999 k"),
        (999_999, "1 M"),
        (-1_234_567, "-1.23 M"),
        (3.4e12, "3.4 T"),
        (2e18, "2e18"),
        (0.1234, "0.1234"),
        (18.4321, "18.43"),
        (0.03125, "0.03125"),
        (3e-5, "3e-5"),
        (-1.5e-7, "-1.5e-7"),
        (math.inf, "–"),
        (-math.inf, "–"),
        (math.nan, "–"),
    ],
)
def test_numbers(value: float | None, expected: str) -> None:
    assert formatting.number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(1234567.0, "1234567"), (0.000512, "0.000512"), (None, "–")]
)
def test_metric(value: float, expected: str) -> None:
    assert formatting.metric(value) == expected


def test_to_minute() -> None:
    assert formatting.timestamp("1970-01-01T00:01:00.500Z") == 60.5
    assert formatting.to_minute("2026-11-21T02:03:04.005Z") == "2026-11-21 02:03"


@pytest.mark.parametrize(
    ("value", "expected"), [(None, "–"), (0, "0e0"), (3.14159e23, "3.14e23"), (1e17, "1e17")]
)
def test_large_numbers(value: float | None, expected: str) -> None:
    assert formatting.scientific(value) == expected
