"""Rows of a plan: the costs of a stage in words and units that the stage chooses."""

from __future__ import annotations

from typing import Literal, TypedDict

Unit = Literal["count", "bytes", "seconds", "share"]


class EstimateRow(TypedDict):
    """One quantity of an estimate, as plain data."""

    name: str
    value: float
    unit: Unit
    parts: dict[str, float]
    """Values of the parts by label, in the same unit."""
    note: str
    """Further words."""
