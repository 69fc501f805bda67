"""Weighted mixtures of token stores.

The stores are not changed. Sample i of a run is looked up in O(1) in a table of one period that
distributes the sources as evenly as whole samples allow: among the first n samples, for every n, a
source of weight w has n * w samples with an error below one. Only the order within each source is
random, so a run can resume at any sample on any number of ranks.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

PERIOD = 1 << 16
"""Maximum length of the table; weights that need more are rounded to multiples of 1 / PERIOD."""


class SampleSource(Protocol):
    """Samples of one source; `len()` is one epoch, larger indices continue with the next ones."""

    def __getitem__(self, index: int) -> Any: ...

    def __len__(self) -> int: ...


def temperature_weights(tokens: Sequence[int], temperature: float) -> list[float]:
    """Return weights proportional to n ** (1 / temperature); 1 keeps the sizes' proportions."""
    largest = max(tokens)
    return [(n / largest) ** (1 / temperature) for n in tokens]


def samples_per_period(weights: Sequence[float]) -> list[int]:
    """Return the number of samples of each source per period.

    Weights are taken as exact decimals and need not sum to a fixed value: 60, 22, 8, 8 and 3 give a
    period of 101. If the exact period is longer than `PERIOD`, it becomes `PERIOD`, distributed by
    largest remainders with at least one sample per source.

    Raises:
        ValueError: a weight is not positive and finite, or the number of weights is 0 or too large.
    """
    if not 0 < len(weights) <= PERIOD or not all(0 < w < math.inf for w in weights):
        raise ValueError(f"expected 1 to {PERIOD} positive weights, got {list(weights)}")
    exact = [Fraction(repr(float(weight))) for weight in weights]
    total = sum(exact)
    shares = [weight / total for weight in exact]
    period = math.lcm(*(share.denominator for share in shares))
    if period <= PERIOD:
        return [int(share * period) for share in shares]
    spare = PERIOD - len(shares)  # one sample per source is reserved
    wanted = [max(Fraction(0), share * PERIOD - 1) for share in shares]
    scaled = [share * spare / sum(wanted) for share in wanted]
    counts = [int(share) for share in scaled]
    by_remainder = sorted(range(len(scaled)), key=lambda s: (counts[s] - scaled[s], s))
    for source in by_remainder[: spare - sum(counts)]:
        counts[source] += 1
    return [count + 1 for count in counts]


@dataclass(frozen=True)
class MixtureSchedule:
    """One period of P samples over S sources."""

    counts: npt.NDArray[np.int64]
    """(S,) samples of each source per period."""
    source: npt.NDArray[np.uint16]
    """(P,) source of each sample."""
    rank: npt.NDArray[np.uint16]
    """(P,) number of earlier samples of the same source in the period."""

    @classmethod
    def from_weights(cls, weights: Sequence[float]) -> MixtureSchedule:
        """Build the schedule of these weights.

        Sample k of a source with c of P samples may be scheduled from floor(k P / c) to before
        ceil((k + 1) P / c), which bounds its error by one. Choosing the earliest deadline among
        the eligible samples meets all deadlines (P-fair schedule on one processor, Baruah et al.
        1996).
        """
        counts = samples_per_period(weights)
        period = sum(counts)
        source, rank = np.empty(period, np.uint16), np.empty(period, np.uint16)
        waiting = [(0, s, 0) for s in range(len(counts))]
        ready: list[tuple[int, int, int]] = []
        for t in range(period):
            while waiting and waiting[0][0] <= t:
                _, s, k = heapq.heappop(waiting)
                heapq.heappush(ready, (-((k + 1) * period // -counts[s]), s, k))
            _, s, k = heapq.heappop(ready)
            source[t], rank[t] = s, k
            if k + 1 < counts[s]:
                heapq.heappush(waiting, ((k + 1) * period // counts[s], s, k + 1))
        return cls(np.array(counts, np.int64), source, rank)

    def locate(self, index: int) -> tuple[int, int]:
        """Return the source of sample `index` of the run, and its index within the source."""
        period, at = divmod(index, len(self.source))
        source = int(self.source[at])
        return source, period * int(self.counts[source]) + int(self.rank[at])

    def samples_per_source(self, samples: int) -> npt.NDArray[np.int64]:
        """Return the number of samples of each source among the first `samples`: (S,)."""
        periods, rest = divmod(samples, len(self.source))
        return periods * self.counts + np.bincount(self.source[:rest], minlength=len(self.counts))


class Mixture:
    """An endless sequence of samples of several sources in proportion to their weights."""

    def __init__(self, sources: Sequence[SampleSource], weights: Sequence[float]) -> None:
        if len(sources) != len(weights):
            raise ValueError(f"{len(weights)} weights for {len(sources)} sources")
        self.sources = sources
        self.schedule = MixtureSchedule.from_weights(weights)

    def __getitem__(self, index: int) -> Any:
        source, sample = self.schedule.locate(index)
        return self.sources[source][sample]

    @property
    def proportions(self) -> list[float]:
        """Share of each source in the schedule; the sum is 1."""
        counts = self.schedule.counts
        return [float(share) for share in counts / counts.sum()]

    def epochs_after(self, samples: int) -> list[float]:
        """Return the number of epochs of each source after so many samples."""
        counts = self.schedule.samples_per_source(samples).tolist()
        return [n / len(source) for n, source in zip(counts, self.sources, strict=True)]


class Interleaved:
    """All samples of several data sets once, interleaved so that every prefix covers each set."""

    def __init__(self, parts: Sequence[SampleSource]) -> None:
        self.parts = parts
        sizes = [len(part) for part in parts]
        place = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes])
        order = np.argsort(place, kind="stable")
        self._part = np.repeat(np.arange(len(parts)), sizes)[order]
        self._index = np.concatenate([np.arange(size) for size in sizes])[order]

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: int) -> Any:
        return self.parts[int(self._part[index])][int(self._index[index])]
