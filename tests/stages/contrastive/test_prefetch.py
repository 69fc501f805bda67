"""Prefetched items are those of the step, however many threads make them."""

import time

import pytest

from stages.contrastive.prefetch import Prefetcher


@pytest.mark.parametrize("threads", [1, 3])
def test_steps_can_be_requested_in_any_order(threads):
    def make(number):
        time.sleep(0.001 * (number % 3))
        return number * number

    prefetcher = Prefetcher(make, lambda step: range(10 * step, 10 * step + 10), threads=threads)
    for step in (0, 1, 2, 7, 8, 3):
        assert prefetcher.get(step) == [n * n for n in range(10 * step, 10 * step + 10)]
        assert all(step < known <= step + 2 for known in prefetcher._pending)


def test_an_error_of_a_thread_is_raised_at_its_step():
    prefetcher = Prefetcher(
        lambda number: 1 // (number - 25), lambda s: range(10 * s, 10 * s + 10), threads=1
    )
    assert len(prefetcher.get(0)) == len(prefetcher.get(1)) == 10
    with pytest.raises(ZeroDivisionError):
        prefetcher.get(2)
