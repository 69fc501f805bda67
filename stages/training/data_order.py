"""Order of the data: the samples of a step are a function of (seed, step), at any world size.

Sample i of a run depends on the seed only. Step s with global batch size G takes samples
s*G .. s*G + G - 1; with a growing batch size, it continues where the step before ended. How samples
are divided into ranks and micro-batches changes nothing but the speed.
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


def derive_seed(*values: int) -> int:
    """Return a seed of 63 bits; those of neighboring values are independent."""
    return int.from_bytes(blake2b(repr(values).encode(), digest_size=8).digest(), "little") >> 1


class Shuffled:
    """Endless samples of a sequence: each epoch visits every item once, in an order of its own.
    Takes no memory, and constant time per sample."""

    def __init__(self, items: Sequence[Any], seed: int) -> None:
        if not len(items):
            raise ValueError("the sequence to shuffle is empty")
        self.items = items
        self.seed = seed

    def __getitem__(self, index: int) -> Any:
        return self.items[self.item_index(index)]

    def item_index(self, index: int) -> int:
        """Return the index of the item that is sample `index` of the run."""
        epoch, i = divmod(index, len(self.items))
        return permute(i, len(self.items), key=derive_seed(self.seed, epoch))


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
