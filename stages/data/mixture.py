"""Mixtures: which source, and which of its samples, is sample i of a run.

A mixture is weights over stores of tokens that stay as they are. Sample i is found in O(1) in a
table of one period, which draws every source in its proportion as evenly as whole samples can:
among the first n samples, for every n, a source of share w has n * w give or take less than one.
So nothing is random but the order within each source, and a run goes on anywhere, on any number
of ranks.
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
"""The longest table; weights that need more are rounded to parts of it."""


class SampleSource(Protocol):
    """Samples of one source: `len()` are an epoch, and indices go on beyond it."""

    def __getitem__(self, index: int) -> Any: ...

    def __len__(self) -> int: ...


def temperature_weights(tokens: Sequence[int], temperature: float) -> list[float]:
    """Weights in proportion to n ** (1 / temperature): 1 keeps the sizes, more evens them out."""
    largest = max(tokens)
    return [(n / largest) ** (1 / temperature) for n in tokens]


def samples_per_period(weights: Sequence[float]) -> list[int]:
    """How many samples of a period are each source's.

    Weights count as the decimals that they are written as, and need not add up to anything: 60,
    22, 8, 8 and 3 are so many of every 101. Where that needs a period of more than `PERIOD` it is
    `PERIOD` by largest remainders, and one at least for each.

    Raises:
        ValueError: a weight is not positive and finite, or there are none, or too many.
    """
    if not 0 < len(weights) <= PERIOD or not all(0 < w < math.inf for w in weights):
        raise ValueError(f"weights are positive numbers, at most {PERIOD}: {list(weights)}")
    exact = [Fraction(repr(float(weight))) for weight in weights]
    total = sum(exact)
    shares = [weight / total for weight in exact]
    period = math.lcm(*(share.denominator for share in shares))
    if period <= PERIOD:
        return [int(share * period) for share in shares]
    spare = PERIOD - len(shares)  # one for each is dealt out before
    wanted = [max(Fraction(0), share * PERIOD - 1) for share in shares]
    scaled = [share * spare / sum(wanted) for share in wanted]
    counts = [int(share) for share in scaled]
    by_remainder = sorted(range(len(scaled)), key=lambda s: (counts[s] - scaled[s], s))
    for source in by_remainder[: spare - sum(counts)]:
        counts[source] += 1
    return [count + 1 for count in counts]


@dataclass(frozen=True)
class MixtureSchedule:
    """A period of P samples over S sources."""

    counts: npt.NDArray[np.int64]
    """(S,) samples of each source in a period."""
    source: npt.NDArray[np.uint16]
    """(P,) whose each sample is."""
    rank: npt.NDArray[np.uint16]
    """(P,) how many of that source came before it in the period."""

    @classmethod
    def from_weights(cls, weights: Sequence[float]) -> MixtureSchedule:
        """The schedule of these weights.

        Unit k of a source with c of P samples may come from floor(k P / c) to before
        ceil((k + 1) P / c), which is what staying within one of its share means. Taking the
        earliest deadline of those that may come meets all deadlines (Baruah et al. 1996, a
        P-fair schedule on one processor).
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
        """The source of sample `index` of the run, and which of the source's samples it is."""
        period, at = divmod(index, len(self.source))
        source = int(self.source[at])
        return source, period * int(self.counts[source]) + int(self.rank[at])

    def samples_per_source(self, samples: int) -> npt.NDArray[np.int64]:
        """How many of the first `samples` samples are each source's: (S,)."""
        periods, rest = divmod(samples, len(self.source))
        return periods * self.counts + np.bincount(self.source[:rest], minlength=len(self.counts))


class Mixture:
    """Samples of several sources in the proportion of their weights, for ever."""

    def __init__(self, sources: Sequence[SampleSource], weights: Sequence[float]) -> None:
        if len(sources) != len(weights):
            raise ValueError(f"{len(weights)} weights for {len(sources)} sources")
        self.sources = sources
        self.schedule = MixtureSchedule.from_weights(weights)

    def __getitem__(self, index: int) -> Any:
        source, place = self.schedule.locate(index)
        return self.sources[source][place]

    @property
    def proportions(self) -> list[float]:
        """Of each source, as they are drawn; they add up to 1."""
        counts = self.schedule.counts
        return [float(share) for share in counts / counts.sum()]

    def epochs_after(self, samples: int) -> list[float]:
        """How often each source has been gone through after so many samples."""
        drawn = self.schedule.samples_per_source(samples).tolist()
        return [n / len(source) for n, source in zip(drawn, self.sources, strict=True)]


class Interleaved:
    """All samples of several data sets once, so that the first n are spread over all of them."""

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
