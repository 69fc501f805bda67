"""Best-fit packing: samples of whole documents; no document that fits is split (Ding et al. 2024,
arXiv 2404.10830).

Documents longer than a sample are first split into full samples. The remainders are placed, longest
first, where the least room remains, and padding fills the rest. The plan is a function of the
document lengths, made when a store is opened, so another context length needs no repacking.

Every token is the target of exactly one position. The input for the first token of a document is
the end token of the document before it, as everywhere in the store; for the remainder of a split
document it is the token before the split.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError
from stages.data.hashing import fold64, permute
from stages.data.token_store import TokenIds, TokenStore

IGNORE_INDEX = -100
"""Target at padding: ignored by the loss."""


@dataclass(frozen=True, slots=True)
class PackedSample:
    """A sample; every array has shape (T,)."""

    tokens: TokenIds
    """Inputs; 0 at padding."""
    targets: TokenIds
    """The next token of each input; -100 at padding."""
    segments: TokenIds
    """Index of the document within the sample, from 0; padding is the last one."""
    positions: TokenIds
    """Position within the document, or within its piece in this sample, from 0."""


@dataclass(frozen=True)
class PackingPlan:
    """Assignment of pieces of documents: pieces `first[s]` to `first[s + 1]` form sample s."""

    starts: npt.NDArray[np.int64]
    """(pieces,) start positions in the store."""
    lengths: npt.NDArray[np.int64]
    """(pieces,) numbers of tokens."""
    first: npt.NDArray[np.int64]
    """(samples + 1,) first piece of each sample."""
    num_split: int
    """Number of documents longer than a sample."""

    @property
    def num_samples(self) -> int:
        """Number of samples per epoch."""
        return len(self.first) - 1


def plan_packing(ends: npt.NDArray[np.int64], length: int) -> PackingPlan:
    """Plan samples of `length` tokens for documents that end at `ends` (documents,)."""
    sizes = np.diff(ends, prepend=0)
    full, rest = np.divmod(sizes, length)
    owner = np.repeat(np.arange(len(sizes)), full)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(full) - full, full)
    left = np.flatnonzero(rest)
    bins = best_fit(rest[left], length)
    order = np.argsort(bins, kind="stable")
    filled = np.bincount(bins) if len(bins) else np.empty(0, np.int64)
    return PackingPlan(
        starts=np.r_[(ends - sizes)[owner] + place * length, (ends - rest)[left][order]],
        lengths=np.r_[np.full(len(owner), length), rest[left][order]],
        first=np.cumsum(np.r_[0, np.ones(len(owner), np.int64), filled]),
        num_split=int(np.count_nonzero(sizes > length)),
    )


def best_fit(lengths: npt.NDArray[np.int64], capacity: int) -> npt.NDArray[np.int64]:
    """Return the bin of each item (items,) by best-fit decreasing; bins are numbered from 0, in the
    order in which they are opened.

    Items of equal length are placed together: while the fullest bins that fit them have the same
    room, each takes as many as fit, bin after bin, which equals placing them one by one. Lengths
    are from 1 to `capacity`.
    """
    bins = np.empty(len(lengths), np.int64)
    order = np.argsort(-lengths, kind="stable")
    sizes, counts = np.unique(lengths, return_counts=True)
    open_bins = _OpenBins(capacity)
    at = 0
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            taken, room = open_bins.take(size, count)
            each = room // size
            placed = min(count, each * len(taken))
            bins[order[at : at + placed]] = np.repeat(taken, each)[:placed]
            open_bins.put(taken[:-1], room - each * size)
            open_bins.put(taken[-1:], room - (placed - each * (len(taken) - 1)) * size)
            at, count = at + placed, count - placed
    return bins


class _OpenBins:
    """Open bins by remaining room. The bits of an integer mark the rooms that exist, so that the
    smallest one that fits an item is found with a shift."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._opened = 0
        self._bins: dict[int, deque[npt.NDArray[np.int64]]] = {}
        self._present = 0

    def take(self, size: int, items: int) -> tuple[npt.NDArray[np.int64], int]:
        """Remove and return bins for up to `items` items of one size, all with the same room, and
        that room."""
        fitting = self._present >> size
        if not fitting:
            needed = -(-items // (self._capacity // size))
            self._opened += needed
            return np.arange(self._opened - needed, self._opened), self._capacity
        room = size + (fitting & -fitting).bit_length() - 1
        needed = -(-items // (room // size))
        queue = self._bins[room]
        taken = queue.popleft()
        if len(taken) > needed:
            queue.appendleft(taken[needed:])
        if not queue:
            self._present ^= 1 << room
        return taken[:needed], room

    def put(self, bins: npt.NDArray[np.int64], room: int) -> None:
        if len(bins) and room:
            self._bins.setdefault(room, deque()).append(bins)
            self._present |= 1 << room


class BestFitSamples:
    """Training samples of T tokens with whole documents, as a sequence.

    With a seed, indices beyond the first epoch continue with the next ones, which visit the same
    samples in other orders. Without a seed there is one epoch, in the order of the plan.

    Raises:
        InputError: the split is empty.
    """

    def __init__(self, store: TokenStore, length: int, seed: int | None = None) -> None:
        if not store.tokens:
            raise InputError(f"no {store.split} tokens", where=str(store.path))
        self.store = store
        self.length = length
        self.seed = seed
        self.plan = plan_packing(store.ends, length)

    @property
    def padding(self) -> float:
        """Share of positions that are padding."""
        return 1 - self.store.tokens / (self.plan.num_samples * self.length)

    def __len__(self) -> int:
        return self.plan.num_samples

    def __iter__(self) -> Iterator[PackedSample]:
        return (self.sample(i) for i in range(len(self)))

    def __getitem__(self, index: int) -> PackedSample:
        epoch, i = divmod(index, len(self))
        if epoch and (epoch < 0 or self.seed is None):
            raise IndexError(index)
        return self.sample(i, epoch)

    def sample(self, index: int, epoch: int = 0) -> PackedSample:
        """Return sample `index` of an epoch."""
        if self.seed is not None:
            index = permute(index, len(self), key=fold64(self.seed, epoch, -2))
        pieces = slice(int(self.plan.first[index]), int(self.plan.first[index + 1]))
        lengths = self.plan.lengths[pieces]
        packed = self._padding(len(lengths), int(lengths.sum()))
        at = 0
        for number, start in enumerate(self.plan.starts[pieces].tolist()):
            size = int(lengths[number])
            ids, here = self.store.window(start - 1, size + 1), slice(at, at + size)
            packed.tokens[here], packed.targets[here] = ids[:-1], ids[1:]
            packed.segments[here], packed.positions[here] = number, np.arange(size)
            at += size
        return packed

    def _padding(self, segment: int, filled: int) -> PackedSample:
        T = self.length
        return PackedSample(
            tokens=np.zeros(T, np.int64),
            targets=np.full(T, IGNORE_INDEX, np.int64),
            segments=np.full(T, segment, np.int64),
            positions=np.arange(T, dtype=np.int64) - filled,
        )
