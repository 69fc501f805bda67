"""Prefetching of the items of coming training steps by threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")

_CHUNK = 8  # items that a thread makes at a time


class Prefetcher(Generic[T]):
    """Items of training steps, made by threads during the steps before.

    Args:
        make: returns an item by its number.
        numbers: returns the numbers of the items of a step.
        threads: number of threads.
        steps: number of steps to prefetch.
    """

    def __init__(
        self,
        make: Callable[[int], T],
        numbers: Callable[[int], range],
        *,
        threads: int,
        steps: int = 2,
    ) -> None:
        self._make, self._numbers, self._steps = make, numbers, steps
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pairs")
        self._pending: dict[int, list[Future[list[T]]]] = {}

    def get(self, step: int) -> list[T]:
        """Return the items of a step; start those of the next steps and cancel all others."""
        for other in [at for at in self._pending if not step <= at <= step + self._steps]:
            for future in self._pending.pop(other):
                future.cancel()
        for coming in range(step, step + self._steps + 1):
            if coming not in self._pending:
                self._pending[coming] = self._submit(self._numbers(coming))
        return [item for future in self._pending.pop(step) for item in future.result()]

    def _submit(self, numbers: range) -> list[Future[list[T]]]:
        def make_chunk(chunk: range) -> list[T]:
            return [self._make(number) for number in chunk]

        chunks = (numbers[at : at + _CHUNK] for at in range(0, len(numbers), _CHUNK))
        return [self._pool.submit(make_chunk, chunk) for chunk in chunks]
