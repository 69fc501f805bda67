"""Which samples a step trains on: a function of (seed, step), at any world size.

Sample i of a run is fixed by the seed alone. Step s of global batch G takes samples
s*G .. s*G + G - 1, and where the batch grows, as many as are its from where the step before ended;
how they fall on ranks and micro-batches changes nothing but the speed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from stages.data.hashing import permute

if TYPE_CHECKING:
    from stages.training.objective import Samples
    from stages.training.ranks.rank import Rank
    from stages.training.training_params import TrainSection


def mix(*values: int) -> int:
    """63 bits that have nothing in common for neighbouring values: a seed for each use."""
    return int.from_bytes(blake2b(repr(values).encode(), digest_size=8).digest(), "little") >> 1


class Shuffled:
    """A sequence as endless samples: each epoch visits all of it in an order of its own, O(1)."""

    def __init__(self, items: Sequence[Any], seed: int) -> None:
        if not len(items):
            raise ValueError("nothing to shuffle")
        self.items = items
        self.seed = seed

    def __getitem__(self, index: int) -> Any:
        return self.items[self.place(index)]

    def place(self, index: int) -> int:
        """Which item sample `index` of the run is."""
        epoch, i = divmod(index, len(self.items))
        return permute(i, len(self.items), key=mix(self.seed, epoch))


def micro_batches(
    samples: Samples,
    settings: TrainSection,
    rank: Rank,
    step: int,
    *,
    length: Callable[[Any], int] | None = None,
) -> list[list[Any]]:
    """Return this rank's samples of a step in micro-batches of equal size.

    With `length`, all samples of the step are sorted by falling length and dealt to the ranks in
    turn: ranks get similar loads, and micro-batches need little padding.
    """
    micro, share = (
        settings.rank_micro_batch_size(rank.world, step),
        settings.rank_batch_size(rank.world, step),
    )
    first = settings.first_sample(step)
    if length is None:
        mine = _take(samples, first + rank.index * share, share)
    else:
        whole = _take(samples, first, settings.batch_size_at(step))
        mine = sorted(whole, key=length, reverse=True)[rank.index :: rank.world]
    return [mine[start : start + micro] for start in range(0, share, micro)]


def _take(samples: Samples, start: int, count: int) -> list[Any]:
    return [samples[i] for i in range(start, start + count)]
