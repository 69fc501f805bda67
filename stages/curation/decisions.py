"""The outcome of filters and deduplication for every record."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Decisions:
    """The outcome for N records; arrays of shape (N,)."""

    rule: npt.NDArray[np.object_]
    """Rule that dropped the record; empty for a kept one."""
    score: npt.NDArray[np.float64]
    """Measurement by which the rule dropped it."""
    survivor: Rows
    """Row of the record that a duplicate is a copy of; its own row for all others."""

    @property
    def kept(self) -> Rows:
        """Rows of the kept records."""
        return np.flatnonzero(self.rule == "")

    def drop(self, rows: Rows, rule: str, score: npt.NDArray[np.float64]) -> None:
        """Drop rows by a rule, each with its score."""
        self.rule[rows] = rule
        self.score[rows] = score
