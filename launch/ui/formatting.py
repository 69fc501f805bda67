"""Numbers, durations and times as text, the same on the terminal and in HTML reports.

A metric without a finite value is a dash everywhere.
"""

from __future__ import annotations

import math
from datetime import datetime

from pipeline.atomic_io import format_bytes
from pipeline.plain_data import read_number

DASH = "–"
"""The text of a metric that has no finite value."""
_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def duration(seconds: float | None) -> str:
    """Format a duration: 0.4 s, 7 s, 3m 05s, 2h 10m, 3d 04h; empty for None and infinity."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds % 1 else f"{seconds:.0f} s"
    whole = round(seconds)
    for size, smaller, big, small in ((86400, 3600, "d", "h"), (3600, 60, "h", "m")):
        if whole >= size:
            return f"{whole // size}{big} {whole % size // smaller:02d}{small}"
    return f"{whole // 60}m {whole % 60:02d}s" if whole >= 60 else f"{whole} s"


def number(value: float | None) -> str:
    """Format a number compactly: 0.0312, 12.5, 1,234, 3.41 M, 3.14e23, 3e-5; a dash for none."""
    if (value := read_number(value)) is None:
        return DASH
    size = abs(value)
    if value == int(value) and size < 1e5:
        return f"{int(value):,}"
    if size >= 1e18:
        return f"{value:.3g}".replace("e+", "e")
    if size >= 99_999.5:
        unit, suffix = next(u for u in _UNITS if size >= 0.9995 * u[0])
        return f"{value / unit:.3g} {suffix}"
    if size < 1e-3:
        return scientific(value)
    return f"{value:,.0f}" if size >= 1e4 else f"{value:.4g}"


def scientific(value: float | None) -> str:
    """Format a number in scientific notation: 3.14e23; a dash for none."""
    if (value := read_number(value)) is None:
        return DASH
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def metric(value: float | None) -> str:
    """Format a metric for comparison: counts in full, other values with six digits; a dash for
    none."""
    if (value := read_number(value)) is None:
        return DASH
    return str(int(value)) if value.is_integer() and abs(value) < 1e9 else f"{value:.6g}"


def change(difference: float | None) -> str:
    """Format the difference of two metrics with its sign; a dash for none."""
    known = read_number(difference)
    return DASH if known is None else f"{known:+.4g}"


def size(number: float | None) -> str:
    """Format a number of bytes; empty for None and infinity."""
    return "" if number is None or not math.isfinite(number) else format_bytes(number)


def timestamp(text: str) -> float:
    """Convert an ISO 8601 time to Unix time in seconds."""
    return datetime.fromisoformat(text).timestamp()


def to_minute(text: str) -> str:
    """Truncate an ISO 8601 time to the minute, in its own time zone."""
    return text[:16].replace("T", " ")
