"""Best-fit packing: samples of whole documents, none cut that fits (Ding et al. 2024, arXiv
2404.10830).

Documents longer than a sample are cut to full samples first. What is left goes, longest first,
where the least room remains that holds it, and padding fills the rest. That plan is made from the
lengths alone when a store is opened, so another context length needs no repacking.

A token is the target of exactly one position. The input before a document's first token is the
end token of the one before it, as everywhere in the store's ring; before the rest of a document
that was cut it is the token before the cut.
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
"""The target of padding: nothing is learned there."""


@dataclass(frozen=True, slots=True)
class PackedSample:
    """A sample; every array has the shape (T,)."""

    tokens: TokenIds
    """Inputs; 0 in the padding."""
    targets: TokenIds
    """The token after each; -100 in the padding."""
    segments: TokenIds
    """Which document of the sample a position belongs to, from 0; the padding is the last."""
    positions: TokenIds
    """Place within the document (or within what the sample has of it), from 0."""


@dataclass(frozen=True)
class PackingPlan:
    """Which pieces of documents each sample holds: pieces `first[s]` to `first[s + 1]`."""

    starts: npt.NDArray[np.int64]
    """(pieces,) where each begins in the store."""
    lengths: npt.NDArray[np.int64]
    """(pieces,) its tokens."""
    first: npt.NDArray[np.int64]
    """(samples + 1,) the first piece of each sample."""
    cut: int
    """Documents that are longer than a sample."""

    @property
    def samples(self) -> int:
        """How many samples hold everything once."""
        return len(self.first) - 1


def plan_packing(ends: npt.NDArray[np.int64], length: int) -> PackingPlan:
    """Lay documents that end at `ends` (documents,) out in samples of `length` tokens."""
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
        cut=int(np.count_nonzero(sizes > length)),
    )


def best_fit(lengths: npt.NDArray[np.int64], capacity: int) -> npt.NDArray[np.int64]:
    """Best-fit decreasing: the bin of each item (items,), from 0, in the order they are opened.

    All items of one length are placed at once: as long as the fullest bins that hold it have the
    same room, each takes as many as fit, one bin after the other, as it would item by item. What
    is left to do an item is to be told its bin. Lengths are from 1 to `capacity`.
    """
    bins = np.empty(len(lengths), np.int64)
    order = np.argsort(-lengths, kind="stable")
    sizes, counts = np.unique(lengths, return_counts=True)
    rooms = _Rooms(capacity)
    at = 0
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            taken, room = rooms.take(size, count)
            each = room // size
            placed = min(count, each * len(taken))
            bins[order[at : at + placed]] = np.repeat(taken, each)[:placed]
            rooms.put(taken[:-1], room - each * size)
            rooms.put(taken[-1:], room - (placed - each * (len(taken) - 1)) * size)
            at, count = at + placed, count - placed
    return bins


class _Rooms:
    """The bins that are open by the room that is left in them; an integer's bits say which rooms
    there are, so that the least that holds an item is found by a shift."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._opened = 0
        self._bins: dict[int, deque[npt.NDArray[np.int64]]] = {}
        self._present = 0

    def take(self, size: int, items: int) -> tuple[npt.NDArray[np.int64], int]:
        """Bins for up to so many items of one size, all with the same room, and that room."""
        fitting = self._present >> size
        if not fitting:
            wanted = -(-items // (self._capacity // size))
            self._opened += wanted
            return np.arange(self._opened - wanted, self._opened), self._capacity
        room = size + (fitting & -fitting).bit_length() - 1
        wanted = -(-items // (room // size))
        waiting = self._bins[room]
        taken = waiting.popleft()
        if len(taken) > wanted:
            waiting.appendleft(taken[wanted:])
        if not waiting:
            self._present ^= 1 << room
        return taken[:wanted], room

    def put(self, bins: npt.NDArray[np.int64], room: int) -> None:
        if len(bins) and room:
            self._bins.setdefault(room, deque()).append(bins)
            self._present |= 1 << room


class BestFitSamples:
    """Samples of T tokens for training, as `stages.data.token_store.Samples`, of whole documents.

    With a seed an index beyond the first epoch goes on into the next ones, which visit the same
    samples in other orders; without one there is one epoch in the plan's order.

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
        """The share of positions that hold nothing."""
        return 1 - self.store.tokens / (self.plan.samples * self.length)

    def __len__(self) -> int:
        return self.plan.samples

    def __iter__(self) -> Iterator[PackedSample]:
        return (self.sample(i) for i in range(len(self)))

    def __getitem__(self, index: int) -> PackedSample:
        epoch, i = divmod(index, len(self))
        if epoch and (epoch < 0 or self.seed is None):
            raise IndexError(index)
        return self.sample(i, epoch)

    def sample(self, index: int, epoch: int = 0) -> PackedSample:
        """Sample `index` of an epoch, at the cost of reading it."""
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
